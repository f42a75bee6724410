"""What keeps pages lists of parts: few classes above each, short ones, and no state on what they get."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib import admin

import controlplane.web.kit
import controlplane.web.pages
from controlplane.web.kit.page import PartsPage

MOST_OWN_CLASSES, MOST_LINES = 4, 300
# What is set on an object that belongs to one request already, by the name that the code gives it.
OWN_STATE = {"self", "state", "opened", "form", "field", "changelist", "response", "reason", "waiting", "result"}
OWN_STATE |= {"offer", "offered", "act", "answer", "explain_view"}


def own_classes(page: admin.ModelAdmin) -> list[type]:
    return [one for one in type(page).__mro__ if one.__module__.startswith(("controlplane.", "enforcement."))]


@pytest.mark.parametrize("page", admin.site._registry.values(), ids=lambda page: type(page).__name__)
def test_a_page_derives_from_few_and_short_classes_and_names_no_part_twice(page):
    """Whoever changes a page reads it and its base, and not a tower of mixins whose order matters."""
    own = own_classes(page)

    assert isinstance(page, PartsPage)
    assert len(own) <= MOST_OWN_CLASSES, [one.__name__ for one in own]
    assert {one.__name__: n for one in own if (n := len(inspect.getsourcelines(one)[0])) > MOST_LINES} == {}
    for parts in (page.columns, page.row_actions, page.bulk_actions, page.panels, page.list_panels, page.views):
        names = [part.name for part in parts]
        assert len(names) == len(set(names))


def assigned(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the name of each object of which an attribute is set, and that of the attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr


def test_nothing_is_hung_on_a_request_or_on_a_row():
    """A row has its columns, and what a page keeps for a request has a type and a place, state.py."""
    columns = {field.name for model in apps.get_models() for field in model._meta.concrete_fields}
    columns |= {field.attname for model in apps.get_models() for field in model._meta.concrete_fields}
    hung = {
        f"{path.name}: {name}.{attribute}"
        for package in (controlplane.web.kit, controlplane.web.pages)
        for path in Path(package.__path__[0]).rglob("*.py")
        for name, attribute in assigned(ast.parse(path.read_text()))
        if name not in OWN_STATE and attribute not in columns
    }

    assert hung == {"state.py: request.POST"}
