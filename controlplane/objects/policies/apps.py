from django.apps import AppConfig


class PoliciesConfig(AppConfig):
    name = "controlplane.objects.policies"
    label = "policies"
    verbose_name = "Policies"
    default_auto_field = "django.db.models.BigAutoField"
    job_modules = ("controlplane.web.rest.apply", "controlplane.web.rest.policies")

    def ready(self) -> None:
        from controlplane.objects.policies import checks  # noqa: F401  (registers a check, which needs the models)
