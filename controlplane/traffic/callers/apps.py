from django.apps import AppConfig


class PreviewConfig(AppConfig):
    name = "controlplane.traffic.callers"
    label = "preview"
    verbose_name = "Preview"
    default_auto_field = "django.db.models.BigAutoField"
    job_modules = ("controlplane.operations.jobs.replay",)
