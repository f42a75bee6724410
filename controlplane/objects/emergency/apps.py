from django.apps import AppConfig


class EmergencyConfig(AppConfig):
    name = "controlplane.objects.emergency"
    label = "emergency"
    verbose_name = "Emergency"
    default_auto_field = "django.db.models.BigAutoField"
