from django.apps import AppConfig


class OverridesConfig(AppConfig):
    name = "controlplane.overrides"
    label = "overrides"
    verbose_name = "Overrides"
