"""Each rule of the house finds what it is there for. ``make lint`` applies the rules to the two trees."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

import pytest

from tests import house
from tests.house import Figure, Source


def source(text: str, path: str = "enforcement/room/module.py") -> Source:
    return Source(path, text, ast.parse(text))


CLASS = "class Wide:\n" + "    def method(self): ...\n" * 26
FUNCTION = 'def long():\n    """Return nothing."""\n' + "    x = 1\n" * 41


@pytest.mark.parametrize(
    ("rule", "files", "found", "broken"),
    [
        (house.room_sizes, [source("", f"enforcement/room/m{i}.py") for i in range(16)], "16", "enforcement/room: 16"),
        (house.file_lengths, [source("x = 1\n" * 401)], "401", "enforcement/room/module.py: 401"),
        (house.class_sizes, [source(CLASS)], "26", "enforcement/room/module.py:1 Wide: 26"),
        (house.body_lengths, [source(FUNCTION)], "41", "enforcement/room/module.py:1 long: 41"),
    ],
)
def test_what_is_too_big_is_named(
    rule: Callable[[Sequence[Source]], Figure], files: list[Source], found: str, broken: str
) -> None:
    """Whoever breaks a rule sees where."""
    figure = rule(files)

    assert (figure.found, figure.broken) == (found, [broken])


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        (house.room_sizes, [source("", f"enforcement/room/m{i}.py") for i in range(15)]),
        (house.room_sizes, [source("", f"enforcement/room{i}/__init__.py") for i in range(16)]),
        (house.file_lengths, [source("x = 1\n" * 400)]),
        (house.file_lengths, [source("x = 1\n" * 443, "enforcement/model/algorithms.py")]),
        (house.class_sizes, [source(CLASS.replace("    def method(self): ...\n", "", 1))]),
        (house.body_lengths, [source(FUNCTION.replace("    x = 1\n", "", 1))]),
    ],
)
def test_what_is_as_big_as_allowed_passes(rule: Callable[[Sequence[Source]], Figure], files: list[Source]) -> None:
    """A limit itself is allowed, and so is the file that matches the Lua."""
    assert rule(files).broken == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return X.", "Return X."),
        ("Return X. Y follows; so does Z.", "Return X."),
        ("Return 1.5 of X\n    and Y?\n\nMore.", "Return 1.5 of X and Y?"),
        ("Without an end", "Without an end"),
    ],
)
def test_first_sentence_ends_at_the_first_full_stop(text: str, sentence: str) -> None:
    """Only the first sentence is judged."""
    assert house.first_sentence(text) == sentence


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [("Return X; else Y.", True), ("Return X: Y.", True), ("Return ``a:b`` as X.", False), ("Return X as in::", False)],
)
def test_two_thoughts_in_one_sentence_are_a_riddle(sentence: str, expected: bool) -> None:
    """A semicolon or a colon in the middle joins two sentences into one."""
    assert house.is_riddle(sentence) is expected


def test_riddles_are_a_share_of_all_docstrings() -> None:
    """Modules, classes and functions count alike."""
    figure = house.riddles(
        [source('"""Return X: Y."""\nclass C:\n    """Hold X."""\n    async def f():\n        """Do."""')]
    )

    assert (figure.found, figure.note) == ("33.3 %", "1 of 3")
    assert figure.broken == ["enforcement/room/module.py:1: Return X: Y."]


def test_two_classes_of_one_name_are_named() -> None:
    """A search for a class leads to one place. Public names that several integrations share are known."""
    figure = house.names_of_classes(
        [source("class A: ...\nclass Limiter: ..."), source("class A: ...\nclass Limiter: ...", "enforcement/b.py")]
    )

    assert figure.broken == ["A: enforcement/room/module.py:1, enforcement/b.py:1"]


CIRCLE = {"t": {"t.a"}, "t.a": {"t.b.x"}, "t.b.x": {"t.a", "t.c"}, "t.b.y": {"t.b.x"}, "t.c": {"t.d"}, "t.d": set()}


def test_modules_that_import_each_other_are_a_circle() -> None:
    """Modules that merely lead to a circle are not part of it."""
    assert house.import_circles(CIRCLE).broken == ["t.a <-> t.b.x"]


def test_longest_chain_counts_rooms() -> None:
    """The tree itself is no room, and a circle counts with all of its rooms."""
    assert house.import_chain(CIRCLE).note == "a > b > c > d"


def test_chain_that_is_too_long_is_named() -> None:
    """The chain is shown from the top down."""
    line = {f"t.{i:02}": {f"t.{i + 1:02}"} for i in range(12)} | {"t.12": set()}

    assert house.import_chain(line).broken == [" > ".join(f"{i:02}" for i in range(13))]


def test_imports_for_types_alone_count() -> None:
    """The graph has imports that only a type checker runs."""
    assert "enforcement.limiter" in house.imports("enforcement")["enforcement"]


def test_report_names_offenders_below_the_table() -> None:
    """A table of all rules comes first."""
    figure = Figure("lines of a file", "401", "400", ["a.py: 401"], note="a.py")

    assert house.report("tree", [figure]).splitlines()[1:] == [
        "  lines of a file                       401        400  a.py",
        "  BROKEN lines of a file: a.py: 401",
    ]


@pytest.mark.parametrize(("broken", "status"), [([], 0), (["a.py: 401"], 1)])
def test_command_fails_if_a_rule_is_broken(broken: list[str], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``make lint`` stops then."""
    monkeypatch.setattr(house, "figures", lambda tree: [Figure("rule", "1", "0", broken)])

    assert house.main([]) == status


def test_drawn_sentences_are_those_of_functions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seed draws the same sentences, so that answers can be compared with the code."""
    monkeypatch.setattr(house, "TREES", ("benchmarks",))  # the smallest: each draw reads all of it
    assert house.main(["--draw", "3", "--seed", "7"]) == 0
    first = capsys.readouterr().out.splitlines()
    house.main(["--draw", "3", "--seed", "7", "--key"])
    with_key = capsys.readouterr().out.splitlines()

    assert len(first) == 3
    assert all(line.startswith(f"{short}  [") for line, short in zip(with_key, first, strict=True))
