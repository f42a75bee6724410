"""Every address below /api/v1/. Paths have no slash at the end, but for the page of documentation."""

from django.urls import include, path, re_path
from rest_framework.routers import SimpleRouter

from controlplane.access.api import MembershipView
from controlplane.alerts.api import AlertEventView, AlertRuleView
from controlplane.api.documentation import Documentation, Index, NoSuchPath, OpenApi
from controlplane.audit.api import AuditView
from controlplane.consumers.api import ConsumerView
from controlplane.drafts.api import DraftView
from controlplane.emergency.api import GlassView, SuspensionView
from controlplane.explain.api import ExplainView
from controlplane.fleet.api import InstanceView
from controlplane.jobs.api import JobView
from controlplane.keys.api import KeyView
from controlplane.overrides.api import OverrideView
from controlplane.policies.api import GlobalView, PolicyView
from controlplane.preview.api import PreviewView
from controlplane.prices.api import PRICE_ID, LearnedEstimateView, PriceView
from controlplane.projects.api import ProjectView
from controlplane.projects.models import SLUG_PATTERN
from controlplane.projects.token_api import ProjectTokenView, SingleTokenView
from controlplane.publishing.api import RevisionView
from controlplane.reservations.api import ReservationView
from controlplane.revisions.api import UndoView
from controlplane.statements.api import StatementView
from controlplane.usage.api import CounterView, DenialView, UsageView
from controlplane.usage.metered_api import LabelUsageView, MeteredView, ModelView
from controlplane.webhooks.api import DeliveryView, WebhookView

router = SimpleRouter(trailing_slash=False)
router.register("projects", ProjectView, "project")
router.register(rf"projects/(?P<slug>{SLUG_PATTERN})/tokens", ProjectTokenView, "project-token")
router.register("tokens", SingleTokenView, "token")
router.register("policies", PolicyView, "policy")
router.register("drafts", DraftView, "draft")
router.register("overrides", OverrideView, "override")
router.register("revisions", RevisionView, "revision")
router.register("memberships", MembershipView, "membership")
router.register("instances", InstanceView, "instance")
router.register("usage/metered", MeteredView, "metered-usage")
router.register("usage/models", ModelView, "model-usage")
router.register("usage/labels", LabelUsageView, "label-usage")
router.register("usage", UsageView, "usage")
router.register("reservations", ReservationView, "reservation")
router.register("denials", DenialView, "denial")
router.register("audit", AuditView, "audit")
router.register("statements", StatementView, "statement")
router.register("management-keys", KeyView, "management-key")
router.register("jobs", JobView, "job")
router.register("alert-rules", AlertRuleView, "alert-rule")
router.register("alert-events", AlertEventView, "alert-event")
router.register("webhooks", WebhookView, "webhook")
router.register("deliveries", DeliveryView, "delivery")
router.register("suspensions", SuspensionView, "suspension")

# A price is set by its model and beginning, with PUT on the list, and is changed and deleted by its id.
ONE_PRICE = {"get": "retrieve", "patch": "partial_update", "delete": "destroy"}

# Those of the router that have a list at an address without a part that differs.
RESOURCES = [
    *(name for name, view, _ in router.registry if "(" not in name and hasattr(view, "list")),
    *("global", "break-glass", "prices", "prices/estimates", "counters"),
]

urlpatterns = [
    path("", Index.as_view(resources=RESOURCES), name="index"),
    path("", include(router.urls)),
    path("global", GlobalView.as_view({"get": "retrieve", "put": "update"}), name="global"),
    path(
        "break-glass",
        GlassView.as_view({"get": "retrieve", "put": "update", "delete": "destroy"}),
        name="break-glass",
    ),
    path("prices", PriceView.as_view({"get": "list", "put": "update"}), name="prices"),
    path("prices/estimates", LearnedEstimateView.as_view({"get": "list"}), name="estimates"),
    re_path(rf"^prices/(?P<id>{PRICE_ID})$", PriceView.as_view(ONE_PRICE), name="price"),
    path("counters", CounterView.as_view({"get": "retrieve"}), name="counters"),
    path("counters/reset", CounterView.as_view({"post": "reset"}), name="counters-reset"),
    re_path(r"^revisions/(?P<number>[0-9]{1,18})/undo$", UndoView.as_view({"post": "undo"}), name="revision-undo"),
    path("explain", ExplainView.as_view({"post": "explain"}), name="explain"),
    path("preview", PreviewView.as_view({"post": "preview"}), name="preview"),
    path("me", ConsumerView.as_view({"get": "me"}), name="me"),
    path("me/usage", ConsumerView.as_view({"get": "usage"}), name="me-usage"),
    path("openapi.json", OpenApi.as_view(), name="openapi"),
    path("docs/", Documentation.as_view(), name="api-docs"),
    re_path("", NoSuchPath.as_view()),
]
