"""The page for contributors names files and rooms that exist."""

from __future__ import annotations

import re
import tomllib

from tests.repository import ROOT

PAGE = (ROOT / "templates" / "docs" / "contributing.md").read_text()
TREES = ("enforcement", "controlplane")
# With a folder, or with one of the usual endings.
_PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:md|py|toml))`")


def layers() -> dict[str, int]:
    """Return the place of each room of the library in the contract, from top to bottom."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["enforcement"])
    return {name: place for place, layer in enumerate(found) for name in re.split(r"\s*[|:]\s*", layer)}


def rooms(tree: str) -> list[str]:
    """Return the rooms of a tree that the tables of the page name, in their order."""
    cells = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith(f"| `{tree}/")]
    return [name for cell in cells for name in re.findall(rf"`{tree}/(\w+)(?:\.py|/)`", cell)]


def test_every_path_exists():
    """A reader finds each file where the page says."""
    named = set(_PATH.findall(PAGE))

    assert len(named) > 80
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_every_target_can_be_made():
    """A reader types no target that the Makefile lacks."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"`make ([a-z]+)`", PAGE)) <= targets


def test_every_room_is_explained():
    """A newcomer reads about each folder and module at the top of both trees."""
    present = {
        tree: {path.stem for path in (ROOT / tree).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
        - {"__init__"}
        for tree in TREES
    }

    assert {tree: set(rooms(tree)) for tree in TREES} == present


def test_rooms_of_the_library_are_listed_from_top_to_bottom():
    """The page shows the order that the linter checks."""
    places = [layers()[name] for name in rooms("enforcement")]

    assert places == sorted(places)
