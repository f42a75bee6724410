from django.apps import AppConfig


class PoliciesConfig(AppConfig):
    name = "controlplane.policies"
    label = "policies"
    verbose_name = "Policies"
    default_auto_field = "django.db.models.BigAutoField"
    job_modules = ("controlplane.policies.api",)

    def ready(self) -> None:
        from controlplane.policies import checks  # noqa: F401  (registers a check, which needs the models)
