"""What the repository as a whole promises: where things lie, and where packages come from."""

from __future__ import annotations

import py_compile
import re
import struct
from pathlib import Path

import pytest

from tests.repository import REGISTRIES, ROOT, copy_code, registry_lines, tracked_files

TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "benchmarks",
    "controlplane",
    "docker",
    "enforcement",
    "hatch_build.py",
    "manage.py",
    "pyproject.toml",
    "templates",
    "tests",
}
REQUIREMENTS = sorted((ROOT / "docker" / "requirements").glob("*.txt"))
_PINNED = re.compile(r"[\w.\[\],-]+==\S+( ; [^\\]+?)?( *--hash=sha256:\w{64})+")


def test_top_level_holds_what_the_layout_names() -> None:
    """A newcomer finds each thing at its place; nothing else lies about."""
    assert {path.relative_to(ROOT).parts[0] for path in tracked_files()} <= TOP_LEVEL


def test_no_tracked_file_names_a_registry() -> None:
    """Packages come from wherever the machine is told to take them."""
    assert registry_lines(tracked_files()) == []


@pytest.mark.parametrize("address", REGISTRIES)
def test_registry_is_recognised(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check finds what it is there for."""
    monkeypatch.setattr("tests.repository.ROOT", tmp_path)
    (tmp_path / "file").write_text(f"first\nsee {address}/simple\n")

    assert registry_lines([tmp_path / "file"]) == [f"file:2: see {address}/simple"]


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_are_pinned_and_hashed(path: Path) -> None:
    """Every requirement is one exact version with at least one hash, and carries no address."""
    entries = re.sub(r"\\\n\s*", "", path.read_text()).splitlines()

    unpinned = [entry for entry in entries if not _PINNED.fullmatch(entry)]

    assert entries
    assert unpinned == []


def test_requirement_files_agree_on_every_version() -> None:
    """What the tests ran with is what the images install."""
    pinned = {path.name: dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.M)) for path in REQUIREMENTS}
    tested = pinned["dev.txt"]

    differing = [
        (name, package)
        for name, pins in pinned.items()
        for package, version in pins.items()
        if tested.get(package, version) != version
    ]

    # The generator of a client forbids our version of typer. It is in no image.
    assert differing == [("clients.txt", "typer")]


def test_sets_of_requirements_are_complete() -> None:
    """One file for each thing that is installed."""
    names = ["base", "clients", "controlplane", "dev", "envoy", "flask", "litellm", "metering", "protobuf", "proxies"]
    names += ["proxy", "sdks", "starlette"]

    assert [path.stem for path in REQUIREMENTS] == names


def test_copied_code_is_not_compiled_again(tmp_path: Path) -> None:
    """Python takes the bytecode of the copy for that of its source. A file that is being written is left."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "module.py").write_text("x = 1\n")
    made = Path(py_compile.compile(str(code / "module.py")))
    made.with_name(f"{made.name}.1").touch()

    copy_code(code, tmp_path / "copy")

    source, (compiled,) = (tmp_path / "copy" / "module.py").stat(), (tmp_path / "copy" / "__pycache__").iterdir()
    assert struct.unpack("<II", compiled.read_bytes()[8:16]) == (int(source.st_mtime), source.st_size)
