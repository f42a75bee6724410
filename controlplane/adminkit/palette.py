"""The search of the command palette, which finds projects, tokens and policies."""

from urllib.parse import urlencode

from django.apps import apps
from django.contrib import admin
from django.http import HttpRequest
from unfold.dataclasses import SearchResult

from controlplane.adminkit.site import change_url, list_url

# Each with the filters of its list that hide nothing.
SEARCHED = {"projects.project": {}, "projects.token": {"status": "all"}, "policies.policy": {}}
SHOWN = 20


def search(request: HttpRequest, term: str) -> list[SearchResult]:
    """
    Return what matches *term* and the user may see: the first rows of each kind, and a link to the list if there are
    more. The theme's own search reads all matching rows, which takes seconds for some thousand.
    """
    return [result for label in SEARCHED for result in _found(request, term, label)]


def _found(request: HttpRequest, term: str, label: str) -> list[SearchResult]:
    model = apps.get_model(label)
    page, kind = admin.site.get_model_admin(model), model._meta.verbose_name.capitalize()
    if not page.has_view_permission(request):
        return []
    rows, may_repeat = page.get_search_results(request, page.get_queryset(request), term)
    rows = list((rows.distinct() if may_repeat else rows)[: SHOWN + 1])
    results = [SearchResult(str(row), kind, change_url(row), "data_object") for row in rows[:SHOWN]]
    if len(rows) > SHOWN:
        url = list_url(model, "?" + urlencode({"q": term, **SEARCHED[label]}))
        results.append(SearchResult(f"All {model._meta.verbose_name_plural} that match", kind, url, "search"))
    return results
