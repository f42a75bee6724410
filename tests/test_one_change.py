"""
What a change changes is found and worded in one room.

That nobody else finds the differences of two records is a contract of import-linter. Here is what no import shows.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcement.model.limit_fields import FIELDS
from tests.repository import ROOT

ROOM = ROOT / "controlplane/changes/words"
LIMIT_FIELDS = {field.name for field in FIELDS} - {"name"}
# What stands between the value before and the one after.
ARROWS = ("→", " -> ")


def field_of(node: ast.expr) -> str | None:
    """Return the field that an expression reads, as ``a.quota``, ``a["quota"]`` and ``a.get("quota")`` do."""
    match node:
        case ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(name)), *_]):
            return name
    return None


def found_in(source: str) -> Iterator[str]:
    """Yield what compares a field of two limits, or puts an arrow between two values."""
    tree = ast.parse(source)
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body and ast.get_docstring(node)
        if isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            fields = {field_of(side) for side in (node.left, *node.comparators)}
            if len(fields) == 1 and fields <= LIMIT_FIELDS:
                yield f"{node.lineno}: {ast.unparse(node)}"
        text = node.value if isinstance(node, ast.Constant) and id(node) not in documented else None
        if isinstance(text, str) and any(arrow in text for arrow in ARROWS):
            yield f"{node.lineno}: {text}"


def outside() -> list[Path]:
    return [path for path in sorted((ROOT / "controlplane").rglob("*.py")) if not path.is_relative_to(ROOM)]


def test_nobody_else_compares_limits_or_words_a_change() -> None:
    """Whoever shows a change has one, and renders it."""
    found = [f"{path.relative_to(ROOT)}:{what}" for path in outside() for what in found_in(path.read_text())]

    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "saved.quota != limit.quota",
        'old["window_seconds"] == new["window_seconds"]',
        'old.get("burst") != new["burst"]',
        'f"{old} → {new}"',
        'print(old + " -> " + new)',
    ],
)
def test_each_of_them_would_be_found(source: str) -> None:
    """However the field is read."""
    assert list(found_in(source))


@pytest.mark.parametrize("source", ["a.quota != b.burst", "a.slug == b.slug", "a.quota > b.quota", 'def f(): "a -> b"'])
def test_other_code_is_none_of_them(source: str) -> None:
    """Two limits of one policy may be ranked, and a docstring may show an arrow."""
    assert not list(found_in(source))
