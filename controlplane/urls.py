from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from controlplane.operations.monitoring import health
from controlplane.web.kit.project_switcher import choose_view
from controlplane.web.pages.explain import explain_view
from controlplane.web.pages.near import near_view
from controlplane.web.pages.policies.hints.views import advice
from controlplane.web.site import docs

handler400 = "controlplane.web.site.error_pages.bad_request"
handler403 = "controlplane.web.site.error_pages.permission_denied"
handler404 = "controlplane.web.site.error_pages.not_found"
handler500 = "controlplane.web.site.error_pages.server_error"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/password_change/", include("controlplane.web.pages.people.own_password")),
    path("admin/second-factor/", include("controlplane.web.pages.people.second_factor")),
    path("admin/", include("controlplane.web.overview.urls")),
    path("admin/policies/policy/advice/", admin.site.admin_view(advice), name="policy-advice"),
    path("admin/explain/", admin.site.admin_view(explain_view), name="explain-denial"),
    path("admin/near-limit/", admin.site.admin_view(near_view), name="near-limit"),
    path("admin/choose-project/", admin.site.admin_view(choose_view), name="choose-project"),
    path("admin/", admin.site.urls),
    path("api/v1/", include("controlplane.web.site.api_urls")),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", health.metrics),
    path("docs/", docs.page, name="docs"),
    path("docs/problems/", docs.problems, name="problems"),
    path("docs/problems/<slug:code>", docs.problem, name="problem"),
    path("docs/<slug:slug>/", docs.page, name="docs-page"),
]
