from django.apps import AppConfig


class RevisionsConfig(AppConfig):
    name = "controlplane.releases.revisions"
    label = "revisions"
    verbose_name = "Revisions"
