from django.apps import AppConfig


class PricesConfig(AppConfig):
    name = "controlplane.prices"
    label = "prices"
    verbose_name = "Prices"

    def ready(self) -> None:
        from controlplane.prices.models import ModelPrice
        from controlplane.publishing.compile import take_prices_from

        take_prices_from(ModelPrice.objects.as_document)
