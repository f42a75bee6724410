from django.apps import AppConfig


class PagesConfig(AppConfig):
    name = "controlplane.web.pages"
    label = "pages"
    verbose_name = "Pages"
