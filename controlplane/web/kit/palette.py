"""
The command palette, which finds rows by their names, runs verbs such as "add policy" and "revoke web", and opens pages
by words of the field such as "2fa" and "kill switch".
"""

from collections.abc import Iterator
from urllib.parse import urlencode

from django.apps import apps
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from unfold.dataclasses import SearchResult

from controlplane.objects.people.scope import is_member
from controlplane.web.kit.menu import navigation
from controlplane.web.kit.page import PartsPage, page_of
from controlplane.web.kit.site import change_url, list_url

# Each with the filters of its list that hide nothing.
SEARCHED = {
    "projects.project": {},
    "projects.token": {"status": "all"},
    "policies.policy": {},
    "policies.override": {},
    "fleet.instance": {},
}
ADDED = (
    *("projects.project", "projects.token", "policies.policy", "policies.override", "projects.managementkey"),
    *("prices.modelprice", "access.membership", "auth.user"),
)
ADD, OPEN = ("add", "new", "create"), ("open", "go", "show")
# Verbs of rows, with the action on the page of the row that they mean.
ACTIONS = {
    "raise": "raise_limit",
    "revoke": "revoke",
    "rotate": "rotate",
    "suspend": "suspend",
    "resume": "resume",
    "reset": "reset_counters",
    "copy": "copy",
    "apply": "apply_everywhere",
}
HAVE_ACTIONS = ("projects.token", "projects.project", "policies.policy")
# Verbs without an object, with the entry of the menu that they mean.
PAGES = {
    "explain": "Explain a denial",
    "switch": "Choose a project",
    "undo": "Revisions",
    "break": "Emergency",
    "suspend": "Emergency",
}
# Words of the field, with the entry of the menu that they mean.
WORDS = {
    **dict.fromkeys(("2fa", "mfa", "totp", "authenticator"), "Second factor"),
    **dict.fromkeys(("kill switch", "break glass", "panic button"), "Emergency"),
    **dict.fromkeys(("rbac", "roles", "members", "users"), "People"),
    **dict.fromkeys(("gitops", "rate limits", "quotas"), "Policies"),
    **dict.fromkeys(("dead letter", "webhooks"), "Destinations"),
    **dict.fromkeys(("billing", "invoices", "spend", "chargeback"), "Statements"),
    **dict.fromkeys(("429", "throttled", "rate limited"), "Explain a denial"),
    **dict.fromkeys(("api keys", "service accounts"), "Management keys"),
    **dict.fromkeys(("rollback", "versions"), "Revisions"),
}
LEAST_OF_A_WORD = 3
SHOWN, SHOWN_OF_A_VERB = 20, 5


def search(request: HttpRequest, term: str) -> list[SearchResult]:
    """
    Return what matches *term* and the user may see: commands, the first rows of each kind, and a link to the list if
    there are more. The theme's own search reads all matching rows, which takes seconds for some thousand.
    """
    words = term.lower().split()
    commands = list(_commands(request, words)) if words else []
    return commands + [result for label in SEARCHED for result in _found(request, term, label)]


def _commands(request: HttpRequest, words: list[str]) -> Iterator[SearchResult]:
    """Yield what the user may open or do, and that is meant by a verb and the beginnings of words."""
    verb, *rest = words
    if verb in ADD:
        yield from _forms(request, rest)
    entries = [entry for group in navigation(request) for entry in group["items"]]
    if is_member(request.user):
        entries.append({"title": "Near a limit", "icon": "speed", "link": reverse("near-limit")})
        entries.append({"title": "Choose a project", "icon": "apartment", "link": reverse("choose-project")})
    meant = _titles(words)
    for entry in entries:
        is_meant = _begin(rest, entry["title"]) if verb in OPEN else entry["title"] in meant
        if is_meant and entry.get("permission", lambda _: True)(request):
            yield SearchResult(f"Open {entry['title']}", "Command", str(entry["link"]), entry["icon"])
    if verb in ACTIONS and rest:
        yield from _deeds(request, ACTIONS[verb], " ".join(rest))


def _titles(words: list[str]) -> set[str]:
    """Return the titles of the entries that these words mean, by a verb or by the beginning of a word of the field."""
    typed = " ".join(words)
    titles = {title for word, title in WORDS.items() if len(typed) >= LEAST_OF_A_WORD and word.startswith(typed)}
    return titles | {title for verb, title in PAGES.items() if verb == words[0]}


def _forms(request: HttpRequest, words: list[str]) -> Iterator[SearchResult]:
    for label in ADDED:
        model = apps.get_model(label)
        name = str(model._meta.verbose_name)
        if _begin(words, name) and page_of(model).has_add_permission(request):
            url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add")
            yield SearchResult(f"Add {name}", "Command", url, "add")


def _deeds(request: HttpRequest, action: str, term: str) -> Iterator[SearchResult]:
    """Yield the pages of the rows that have an action, which the page then opens. It asks before it does anything."""
    for label in HAVE_ACTIONS:
        page = page_of(apps.get_model(label))
        if action not in page.actions_detail or not page.has_view_permission(request):
            continue
        for row in _rows(request, page, term)[:SHOWN_OF_A_VERB]:
            for offered in page.get_actions_detail(request, row.pk):
                if offered.action_name.endswith(f"_{action}"):
                    url = f"{change_url(row)}?do={action}"
                    yield SearchResult(f"{offered.description}: {row}", "Command", url, offered.icon or "bolt")


def _begin(words: list[str], title: str) -> bool:
    """Return whether there are words, and each begins a word of the title."""
    names = title.lower().split()
    return bool(words) and all(any(name.startswith(word) for name in names) for word in words)


def _found(request: HttpRequest, term: str, label: str) -> list[SearchResult]:
    model = apps.get_model(label)
    page, kind = page_of(model), model._meta.verbose_name.capitalize()
    if not page.has_view_permission(request):
        return []
    rows = list(_rows(request, page, term)[: SHOWN + 1])
    results = [SearchResult(str(row), kind, change_url(row), "data_object") for row in rows[:SHOWN]]
    if len(rows) > SHOWN:
        url = list_url(model, "?" + urlencode({"q": term, **SEARCHED[label]}))
        results.append(SearchResult(f"All {model._meta.verbose_name_plural} that match", kind, url, "search"))
    return results


def _rows(request: HttpRequest, page: PartsPage, term: str) -> QuerySet:
    rows, may_repeat = page.get_search_results(request, page.get_queryset(request), term)
    if page.list_select_related:  # the name of an override names its limit and its holder
        rows = rows.select_related(*page.list_select_related)
    return rows.distinct() if may_repeat else rows
