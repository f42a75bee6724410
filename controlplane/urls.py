from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from controlplane import docs, health
from controlplane.adminkit.switcher import choose_view
from controlplane.advice.views import advice
from controlplane.explain.admin import explain_view
from controlplane.explain.panels import near_view

handler400 = "controlplane.error_pages.bad_request"
handler403 = "controlplane.error_pages.permission_denied"
handler404 = "controlplane.error_pages.not_found"
handler500 = "controlplane.error_pages.server_error"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/password_change/", include("controlplane.access.own_password")),
    path("admin/second-factor/", include("controlplane.access.second_factor_pages")),
    path("admin/", include("controlplane.firstrun.urls")),
    path("admin/policies/policy/advice/", admin.site.admin_view(advice), name="policy-advice"),
    path("admin/explain/", admin.site.admin_view(explain_view), name="explain-denial"),
    path("admin/near-limit/", admin.site.admin_view(near_view), name="near-limit"),
    path("admin/choose-project/", admin.site.admin_view(choose_view), name="choose-project"),
    path("admin/", admin.site.urls),
    path("api/v1/", include("controlplane.api_urls")),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", health.metrics),
    path("docs/", docs.page, name="docs"),
    path("docs/problems/", docs.problems, name="problems"),
    path("docs/problems/<slug:code>", docs.problem, name="problem"),
    path("docs/<slug:slug>/", docs.page, name="docs-page"),
]
