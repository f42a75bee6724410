from django.apps import AppConfig


class AccessConfig(AppConfig):
    name = "controlplane.objects.people"
    label = "access"
    verbose_name = "Access"
    default_auto_field = "django.db.models.BigAutoField"
