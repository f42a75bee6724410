from django.apps import AppConfig


class KeysConfig(AppConfig):
    name = "controlplane.objects.keys"
    label = "keys"
    verbose_name = "Management keys"
    default_auto_field = "django.db.models.BigAutoField"
