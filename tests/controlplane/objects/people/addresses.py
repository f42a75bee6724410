"""The addresses of the admin, from its URL configuration."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.db.models import Model
from django.urls import NoReverseMatch, URLPattern, URLResolver, get_resolver, reverse

# What other addresses than those of a row need.
OTHERS = {"app_list": ["projects"]}


def patterns() -> list[URLPattern]:
    """Return each address below /admin/ that has a name. The others lead to one of these, or to nothing."""
    below = [found for found in get_resolver().url_patterns if str(found.pattern).startswith("admin/")]
    return [pattern for pattern in _each(below) if pattern.name]


def _each(found: list[Any]) -> Iterator[URLPattern]:
    for one in found:
        if isinstance(one, URLResolver):
            yield from _each(one.url_patterns)
        else:
            yield one


def _reversed(name: str, args: list[Any]) -> str:
    """Return the address with this name, which most have among those of the admin's site."""
    with suppress(NoReverseMatch):
        return reverse(f"admin:{name}", args=args)
    return reverse(name, args=args)


def is_of_a_row(pattern: URLPattern) -> bool:
    converters = getattr(pattern.pattern, "converters", {})
    return bool(converters) and pattern.name not in OTHERS


def address(pattern: URLPattern, row: Model | None, key: Any = None) -> str:
    """Return an address, for that of a row with its primary key or with *key*."""
    if pattern.name in OTHERS or not is_of_a_row(pattern):
        return _reversed(pattern.name, OTHERS.get(pattern.name, []))
    key = row.pk if key is None else key
    if pattern.name == "view_on_site":
        return _reversed("view_on_site", [ContentType.objects.get_for_model(row).pk, key])
    return _reversed(pattern.name, [key])


def row_of(pattern: URLPattern, rows: dict[str, Model]) -> Model | None:
    """Return the row whose model the name of an address begins with, or None."""
    models = [model for model in rows if pattern.name.startswith(model)]
    if pattern.name.startswith("reservations_"):
        models = ["reservations_reservation"]
    if pattern.name == "view_on_site":
        models = ["projects_token"]
    return rows[max(models, key=len)] if models else None


def unknown_key(row: Model) -> Any:
    """Return a primary key of the same form that no row has."""
    return row.pk + 10_000 if isinstance(row.pk, int) else f"{row.pk[:-1]}{'1' if row.pk[-1] == '0' else '0'}"
