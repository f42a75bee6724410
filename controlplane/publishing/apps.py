from django.apps import AppConfig


class PublishingConfig(AppConfig):
    name = "controlplane.publishing"
    label = "publishing"
    verbose_name = "Publishing"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from controlplane import checks  # noqa: F401  (registers them)
        from controlplane.publishing import (
            changes,
            installation,  # noqa: F401  (registers a signal)
            publisher,
        )

        changes.publish_after_commit(publisher.publish_change)
