from django.apps import AppConfig


class RevisionsConfig(AppConfig):
    name = "controlplane.revisions"
    label = "revisions"
    verbose_name = "Revisions"
