from django.apps import AppConfig


class OverridesConfig(AppConfig):
    name = "controlplane.objects.overrides"
    label = "overrides"
    verbose_name = "Overrides"
    job_modules = ("controlplane.web.rest.overrides", "controlplane.operations.jobs.many_overrides")
