"""The menu of the admin, ordered by what people want to do and not by Django application."""

from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

from django import template
from django.http import HttpRequest
from django.urls import reverse_lazy

from controlplane.web.kit.project_switcher import ProjectChoice, carried, choice, chosen

register = template.Library()


class Entry(TypedDict):
    """An entry of the menu, as the theme expects it, with the URL name of its page."""

    title: str
    icon: str
    link: object
    name: NotRequired[str]
    permission: NotRequired[Callable[[HttpRequest], bool]]
    badge: NotRequired[str]
    badge_variant: NotRequired[str]


class Group(TypedDict):
    title: NotRequired[str]
    items: list[Entry]


def navigation(request: HttpRequest) -> list[Group]:
    """
    Return the groups of the menu with their entries, as the theme expects them.

    Lists that can be narrowed to a project begin with the one that the user works in.
    """
    groups: list[Group] = [
        {
            "items": [
                _menu("Overview", "dashboard", "index", ""),
                _entry("Explain a denial", "contact_support", reverse_lazy("explain-denial")),
            ]
        },
        {"title": "Limits", "items": _limits()},
        {"title": "Activity", "items": _activity()},
        {"title": "Access", "items": _access()},
    ]
    project = chosen(request)
    for entry in (entry for group in groups for entry in group["items"]):
        if query := carried(entry.get("name", ""), project):
            entry["link"] = f"{entry['link']}{query}"
    return groups


@register.simple_tag(takes_context=True)
def project_choice(context: dict[str, Any]) -> ProjectChoice:
    """Return what the frame offers for the choice of a project."""
    return choice(context["request"])


@register.filter
def menu_title(url: str, default: str) -> str:
    """Return the title of the menu's entry that leads to a list, or *default* if there is none."""
    groups = (_limits(), _activity(), _access())
    return next((entry["title"] for group in groups for entry in group if entry["link"] == url), default)


def _limits() -> list[Entry]:
    return [
        _menu("Projects", "apartment", "projects_project_changelist", "projects.view_project"),
        _menu("Tokens", "key", "projects_token_changelist", "projects.view_token"),
        _menu("Policies", "tune", "policies_policy_changelist", "policies.view_policy"),
        _menu("Drafts", "edit_note", "drafts_policydraft_changelist", "drafts.view_policydraft"),
        _menu("Models and prices", "payments", "prices_modelprice_changelist", "prices.view_modelprice"),
        _menu("Overrides", "alt_route", "policies_override_changelist", "policies.view_override"),
    ]


def _activity() -> list[Entry]:
    pending = "controlplane.web.pages.publishing.pending_badge"
    firing = "controlplane.web.overview.hands.firing_badge"
    return [
        _menu("Usage", "bar_chart", "usage_usagerow_changelist", "usage.view_usagerow"),
        _menu("Statements", "receipt_long", "statements_monthrow_changelist", "statements.view_monthrow"),
        _menu("Metered usage", "token", "usage_meteredrow_changelist", "usage.view_meteredrow"),
        _menu("Reservations", "pending", "reservations_reservation_changelist", "reservations.view_reservation"),
        _menu("Sampled denials", "block", "usage_deniedrequest_changelist", "usage.view_deniedrequest"),
        _menu("Daily reports", "summarize", "usage_dailyreport_changelist", "usage.view_dailyreport"),
        _menu("Instances", "dns", "fleet_instance_changelist", "fleet.view_instance"),
        _menu("Revisions", "history", "publishing_revision_changelist", "publishing.view_revision", pending),
        _menu("Alerts", "notifications", "alerts_alertevent_changelist", "alerts.view_alertevent", firing),
        _menu("Alert rules", "rule", "alerts_alertrule_changelist", "alerts.view_alertrule"),
        _menu("Destinations", "send", "webhooks_destination_changelist", "webhooks.view_destination"),
        _menu("Emergency", "emergency", "emergency_suspension_changelist", ""),
        _menu("Jobs", "checklist", "jobs_job_changelist", ""),
        _menu("Audit", "fact_check", "policies_auditentry_changelist", "policies.view_auditentry"),
    ]


def _access() -> list[Entry]:
    return [
        _menu("Management keys", "vpn_key", "projects_managementkey_changelist", "projects.view_managementkey"),
        _menu("People", "group", "auth_user_changelist", "auth.view_user"),
        _menu("Sign-in failures", "gpp_bad", "axes_accessattempt_changelist", "axes.view_accessattempt"),
        _entry("Second factor", "phonelink_lock", reverse_lazy("second-factor")),
        _entry("Help", "help", reverse_lazy("docs")),
    ]


def _menu(title: str, icon: str, name: str, right: str, badge: str = "") -> Entry:
    """
    Return an entry of the menu, which is shown to users with the permission *right*.

    Args:
        name: The URL name of the page in the admin.
        badge: The dotted path of the function that returns the badge's text.
    """
    entry = _entry(title, icon, reverse_lazy(f"admin:{name}"))
    entry["name"] = name
    entry["permission"] = lambda request: not right or request.user.has_perm(right)
    if badge:
        entry["badge"], entry["badge_variant"] = badge, "warning"
    return entry


def _entry(title: str, icon: str, link: object) -> Entry:
    return {"title": title, "icon": icon, "link": link}
