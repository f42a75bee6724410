from django.apps import AppConfig


class StackConfig(AppConfig):
    name = "controlplane.stack"
    label = "stack"
    verbose_name = "Embedded stack"
