from django.apps import AppConfig


class OverridesConfig(AppConfig):
    name = "controlplane.overrides"
    label = "overrides"
    verbose_name = "Overrides"
    job_modules = ("controlplane.overrides.api", "controlplane.overrides.bulk")
