"""The command palette, which finds rows by their names, and opens pages and forms by verbs such as "add policy"."""

from collections.abc import Iterator
from urllib.parse import urlencode

from django.apps import apps
from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from unfold.dataclasses import SearchResult

from controlplane.adminkit.menu import navigation
from controlplane.adminkit.site import change_url, list_url

# Each with the filters of its list that hide nothing.
SEARCHED = {
    "projects.project": {},
    "projects.token": {"status": "all"},
    "policies.policy": {},
    "policies.override": {},
    "fleet.instance": {},
}
ADDED = ("projects.project", "projects.token", "policies.policy", "policies.override", "projects.managementkey")
ADD, OPEN = ("add", "new", "create"), ("open", "go", "show")
SHOWN = 20


def search(request: HttpRequest, term: str) -> list[SearchResult]:
    """
    Return what matches *term* and the user may see: commands, the first rows of each kind, and a link to the list if
    there are more. The theme's own search reads all matching rows, which takes seconds for some thousand.
    """
    words = term.lower().split()
    commands = list(_commands(request, words)) if words and words[0] in (*ADD, *OPEN) else []
    return commands + [result for label in SEARCHED for result in _found(request, term, label)]


def _commands(request: HttpRequest, words: list[str]) -> Iterator[SearchResult]:
    """Yield the forms or pages that the user may open, and that are meant by a verb and the beginnings of words."""
    verb, *rest = words
    if verb in ADD:
        for label in ADDED:
            model = apps.get_model(label)
            name = str(model._meta.verbose_name)
            if _begin(rest, name) and admin.site.get_model_admin(model).has_add_permission(request):
                url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add")
                yield SearchResult(f"Add {name}", "Command", url, "add")
        return
    for group in navigation(request):
        for entry in group["items"]:
            if _begin(rest, entry["title"]) and entry.get("permission", lambda _: True)(request):
                yield SearchResult(f"Open {entry['title']}", "Command", str(entry["link"]), entry["icon"])


def _begin(words: list[str], title: str) -> bool:
    """Return whether there are words, and each begins a word of the title."""
    names = title.lower().split()
    return bool(words) and all(any(name.startswith(word) for name in names) for word in words)


def _found(request: HttpRequest, term: str, label: str) -> list[SearchResult]:
    model = apps.get_model(label)
    page, kind = admin.site.get_model_admin(model), model._meta.verbose_name.capitalize()
    if not page.has_view_permission(request):
        return []
    rows, may_repeat = page.get_search_results(request, page.get_queryset(request), term)
    if page.list_select_related:  # the name of an override names its limit and its holder
        rows = rows.select_related(*page.list_select_related)
    rows = list((rows.distinct() if may_repeat else rows)[: SHOWN + 1])
    results = [SearchResult(str(row), kind, change_url(row), "data_object") for row in rows[:SHOWN]]
    if len(rows) > SHOWN:
        url = list_url(model, "?" + urlencode({"q": term, **SEARCHED[label]}))
        results.append(SearchResult(f"All {model._meta.verbose_name_plural} that match", kind, url, "search"))
    return results
