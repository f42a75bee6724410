"""Every address below /api/v1/. Paths have no slash at the end, but for the page of documentation."""

from django.urls import include, path, re_path
from rest_framework.routers import SimpleRouter

from controlplane.objects.projects.models import SLUG_PATTERN
from controlplane.web.rest.alerts import AlertEventView, AlertRuleView
from controlplane.web.rest.apply import ApplyView
from controlplane.web.rest.audit import AuditView
from controlplane.web.rest.consumers import ConsumerView
from controlplane.web.rest.drafts import DraftView
from controlplane.web.rest.emergency import GlassView, SuspensionView
from controlplane.web.rest.explain import ExplainView
from controlplane.web.rest.fleet import InstanceView
from controlplane.web.rest.jobs import JobView
from controlplane.web.rest.keys import KeyView
from controlplane.web.rest.metered import LabelUsageView, MeteredView, ModelView
from controlplane.web.rest.overrides import OverrideView
from controlplane.web.rest.people import MembershipView
from controlplane.web.rest.policies import GlobalView, PolicyView
from controlplane.web.rest.preview import PreviewView
from controlplane.web.rest.prices import PRICE_ID, LearnedEstimateView, PriceView
from controlplane.web.rest.projects import ProjectView
from controlplane.web.rest.publishing import RevisionView
from controlplane.web.rest.reservations import ReservationView
from controlplane.web.rest.revisions import UndoView
from controlplane.web.rest.statements import StatementView
from controlplane.web.rest.tokens import ProjectTokenView, SingleTokenView
from controlplane.web.rest.usage import CounterView, DenialView, UsageView
from controlplane.web.rest.webhooks import DeliveryView, WebhookView
from controlplane.web.restkit.documentation import Documentation, Index, NoSuchPath, OpenApi

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
    # A price is set by its model and beginning, with PUT on the list, and is changed and deleted by its id.
    path("prices", PriceView.as_view({"get": "list", "put": "update"}), name="prices"),
    path("prices/estimates", LearnedEstimateView.as_view({"get": "list"}), name="estimates"),
    re_path(
        rf"^prices/(?P<id>{PRICE_ID})$",
        PriceView.as_view({"get": "retrieve", "patch": "partial_update", "delete": "destroy"}),
        name="price",
    ),
    path("counters", CounterView.as_view({"get": "retrieve"}), name="counters"),
    path("counters/reset", CounterView.as_view({"post": "reset"}), name="counters-reset"),
    re_path(r"^revisions/(?P<number>[0-9]{1,18})/undo$", UndoView.as_view({"post": "undo"}), name="revision-undo"),
    path("apply", ApplyView.as_view({"post": "apply"}), name="apply"),
    path("explain", ExplainView.as_view({"post": "explain"}), name="explain"),
    path("preview", PreviewView.as_view({"post": "preview"}), name="preview"),
    path("me", ConsumerView.as_view({"get": "me"}), name="me"),
    path("me/usage", ConsumerView.as_view({"get": "usage"}), name="me-usage"),
    path("openapi.json", OpenApi.as_view(), name="openapi"),
    path("docs/", Documentation.as_view(), name="api-docs"),
    re_path("", NoSuchPath.as_view()),
]
