from django.apps import AppConfig


class ChangeConfig(AppConfig):
    name = "controlplane.changes.change"
    label = "change"
    verbose_name = "Changes"
