"""Each rule of the house finds what it is there for. ``make lint`` applies the rules to the two trees."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import house
from tests.house import Figure, Source


def source(text: str, path: str = "enforcement/room/module.py") -> Source:
    return Source(path, text)


def room(modules: int) -> list[Source]:
    """Return a room that also has an ``__init__``, which does not count."""
    return [source("", f"enforcement/room/{name}.py") for name in ("__init__", *map(str, range(modules)))]


def wide(methods: int) -> list[Source]:
    return [source("class Wide:\n    x = 1\n" + "    def method(self): ...\n" * methods)]


def long(lines: int) -> list[Source]:
    return [source('class Long:\n    def body(self):\n        """Return nothing."""\n' + "        x = 1\n" * lines)]


SIZES = [
    ("modules in a room", room, 40, "enforcement/room"),
    ("lines of a file", lambda lines: [source("x = 1\n" * lines)], 1_000, "enforcement/room/module.py"),
    ("methods of a class", wide, 60, "enforcement/room/module.py Wide"),
    ("lines of a body", long, 100, "enforcement/room/module.py Long.body"),
]


@pytest.mark.parametrize(("rule", "files", "most", "name"), SIZES)
def test_what_is_too_big_is_named(rule: str, files: Callable[[int], list[Source]], most: int, name: str) -> None:
    """Whoever breaks a rule sees where. The limit itself is allowed."""
    assert house.sizes(rule, files(most)).broken == []

    figure = house.sizes(rule, files(most + 1))

    assert (figure.found, figure.note, figure.broken) == (str(most + 1), name, [f"{name}: {most + 1}"])


@pytest.mark.parametrize(("rule", "files", "most", "name"), SIZES)
def test_growth_is_shown(rule: str, files: Callable[[int], list[Source]], most: int, name: str) -> None:
    """What a change makes larger is shown with its sizes before and after, also if it is small. It breaks no rule."""
    shown = list(house.growth(files(2), files(5), {}))

    at = shown.index(f"{rule}: 1 grew")
    before, arrow, now, *grown = shown[at + 1].split()
    assert (int(now) - int(before), arrow, " ".join(grown)) == (3, "->", name)


def test_growth_of_what_stays_is_not_shown() -> None:
    """What shrinks or stays as it is needs no look."""
    assert list(house.growth(room(3) + wide(3), room(2) + wide(3), {})) == [
        *(f"{rule}: 0 grew" for rule in house.SIZES),
        "names that one more class has: 0",
    ]


def test_growth_names_classes_that_share_a_name() -> None:
    """A search for a class should lead to one place."""
    before, second = wide(1), source("class Wide: ...", "controlplane/b.py")

    assert list(house.growth(before, [*before, second], {}))[-2:] == [
        "names that one more class has: 1",
        "  Wide: enforcement/room/module.py:1, controlplane/b.py:1",
    ]


def test_a_moved_file_makes_its_new_room_larger_and_nothing_else() -> None:
    """Otherwise all functions of the file would be shown as new."""
    old, new = (
        source("def f():\n    x = 1\n", "enforcement/a/m.py"),
        source("def f():\n    x = 1\n", "enforcement/b/m.py"),
    )

    assert list(house.growth([old], [new], {old.path: new.path}))[:4] == [
        "modules in a room: 1 grew",
        "     0 -> 1    enforcement/b",
        "lines of a file: 0 grew",
        "methods of a class: 0 grew",
    ]


def commit(clone: Path, text: str) -> None:
    """Commit a module with this text in each tree."""
    for tree in house.TREES:
        (clone / tree / "migrations").mkdir(parents=True, exist_ok=True)
        (clone / tree / "module.py").write_text(text)
        (clone / tree / "migrations" / "0001.py").write_text(text)
    for words in (["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "--quiet", "-m", "a"]):
        subprocess.run(["git", *words], cwd=clone, check=True)


def test_growth_is_counted_from_where_a_branch_began(tmp_path: Path) -> None:
    """A clone without an upstream shows its last commit. The first commit has none before it."""
    git = functools.partial(subprocess.run, cwd=tmp_path, check=True)
    git(["git", "init", "--quiet", "--initial-branch=change"])
    commit(tmp_path, "one\n")
    assert house.base(tmp_path) is None
    git(["git", "branch", "begin"])
    commit(tmp_path, "two\n")
    commit(tmp_path, "three\n")
    assert texts_at(house.base(tmp_path), tmp_path) == {"two\n"}

    git(["git", "branch", "--quiet", "--set-upstream-to=begin"])

    assert texts_at(house.base(tmp_path), tmp_path) == {"one\n"}


def test_moves_since_a_commit_are_found(tmp_path: Path) -> None:
    """Git tells them by what the files hold."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    commit(tmp_path, "x = 1\ny = 2\n")
    subprocess.run(["git", "mv", "enforcement/module.py", "enforcement/b.py"], cwd=tmp_path, check=True)

    assert house.moves("HEAD", tmp_path) == {"enforcement/module.py": "enforcement/b.py"}


def texts_at(revision: str | None, clone: Path) -> set[str]:
    files = house.sources_at(revision or "", clone)
    assert sorted(file.path for file in files) == ["controlplane/module.py", "enforcement/module.py"]
    return {file.text for file in files}


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


def test_two_classes_of_one_name_are_counted() -> None:
    """Both trees count. Names that several integrations share are known."""
    text = "class A: ...\nclass Limiter: ..."

    assert house.names_of_classes([source(text), source(text, "controlplane/b.py")]).found == "1"


CIRCLE = {"t": {"t.a"}, "t.a": {"t.b.x"}, "t.b.x": {"t.a", "t.c"}, "t.b.y": {"t.b.x"}, "t.c": {"t.d"}, "t.d": set()}


def test_modules_that_import_each_other_are_a_circle() -> None:
    """Modules that merely lead to a circle are not part of it."""
    assert house.import_circles(CIRCLE).broken == ["t.a <-> t.b.x"]


def test_longest_chain_counts_rooms() -> None:
    """The tree itself is no room, and modules of one room count once."""
    arrows = {"t": {"t.a"}, "t.a": {"t.b.x", "t.c"}, "t.b.x": {"t.b.y"}, "t.b.y": {"t.c"}, "t.c": {"t.d"}, "t.d": set()}

    assert house.import_chain(arrows).note == "a > b > c > d"


def test_chain_that_is_too_long_is_named() -> None:
    """The chain is shown from the top down."""
    line = {f"t.{i:02}": {f"t.{i + 1:02}"} for i in range(20)} | {"t.20": set()}

    assert house.import_chain(line).broken == [" > ".join(f"{i:02}" for i in range(21))]


def test_imports_for_types_alone_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph has imports that only a type checker runs."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small/__init__.py").write_text("TYPE_CHECKING = False\nif TYPE_CHECKING:\n    import small.a\n")
    (tmp_path / "small/a.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)  # where the graph is cached

    assert house.imports("small") == {"small": {"small.a"}, "small.a": set()}


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
    monkeypatch.setattr(house, "figures", lambda: {"tree": [Figure("rule", "1", "0", broken)]})

    assert house.main([]) == status


def test_drawn_sentences_are_those_of_functions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seed draws the same sentences, so that answers can be compared with the code."""
    texts = [f'class C:\n    def f{i}(self):\n        """Return {i}."""' for i in range(9)]
    monkeypatch.setattr(house, "sources", lambda tree: [source(text, f"{tree}/m.py") for text in texts])
    assert house.main(["--draw", "3", "--seed", "7"]) == 0
    first = capsys.readouterr().out.splitlines()
    house.main(["--draw", "3", "--seed", "7", "--key"])
    with_key = capsys.readouterr().out.splitlines()

    assert len(first) == 3
    assert all(line.startswith(f"{short}  [") for line, short in zip(with_key, first, strict=True))
