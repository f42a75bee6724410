from django.apps import AppConfig


class PricesConfig(AppConfig):
    name = "controlplane.objects.prices"
    label = "prices"
    verbose_name = "Prices"
