from django.apps import AppConfig


class PricesConfig(AppConfig):
    name = "controlplane.prices"
    label = "prices"
    verbose_name = "Prices"
