from django.apps import AppConfig


class PublishingConfig(AppConfig):
    name = "controlplane.releases.publishing"
    label = "publishing"
    verbose_name = "Publishing"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from controlplane import checks  # noqa: F401  (registers them)
        from controlplane.changes.change import transaction
        from controlplane.releases.publishing import installation, publisher  # noqa: F401  (registers a check)

        transaction.publish_after_commit(publisher.publish_change)
