from django.contrib import admin
from django.urls import path

urlpatterns = [
    path("admin/", admin.site.urls),
    # REST, health and documentation: each app's own URL module is included here.
]
