"""Outside of controlplane/changes/words, nobody compares the fields of two limits or writes a value beside another."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcement.model.limit_fields import FIELDS

ROOT = Path(__file__).parents[4]
NAMES = {field.name for field in FIELDS} - {"name"}
# An arrow in a text, or a comparison with a field of a limit. Only such files are parsed.
SUSPECT = re.compile(rf"→|f[\"'].* -> |\.({'|'.join(NAMES)})\b.*[!=]=|[!=]=.*\.({'|'.join(NAMES)})\b")
# Advice compares the unit of a form with the saved one, to say that the quota is not converted.
ALLOWED = {"controlplane/web/pages/policies/hints/form.py"}


def broken(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
            if any("→" in text or " -> " in text for text in texts):
                yield f"{node.lineno}: an arrow"
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            sides = (node.left, node.comparators[0])
            names = [side.attr for side in sides if isinstance(side, ast.Attribute)]
            if len(names) == 2 and names[0] == names[1] and names[0] in NAMES:
                yield f"{node.lineno}: {names[0]} of two limits"


def test_nobody_else_words_or_compares_a_change():
    """The others ask the room, so that a new field is said everywhere."""
    found = []
    for path in (ROOT / "controlplane").rglob("*.py"):
        name, source = path.relative_to(ROOT).as_posix(), path.read_text()
        if SUSPECT.search(source) and not name.startswith("controlplane/changes/words/") and name not in ALLOWED:
            found += [f"{name}:{one}" for one in broken(source)]

    assert found == []


@pytest.mark.parametrize("source", ['f"{old} → {new}"', 'f"{old} -> {new}"', "a.quota != b.quota", "a.unit == b.unit"])
def test_what_is_refused(source):
    """Each is found by the quick look, too."""
    assert SUSPECT.search(source)
    assert list(broken(source))
