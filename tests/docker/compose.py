"""docker/compose.yaml as an engine would read it, with the names of its network replaced by places on this machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.repository import ROOT, copy_code

COMPOSE_FILE = ROOT / "docker" / "compose.yaml"
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:[?-])([^}]*))?\}")


class MissingVariable(Exception):
    """A variable without which the file refuses to be used."""


def load(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the file with anchors resolved and ${VARIABLES} put in."""

    def put_in(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if variables.get(name):
            return variables[name]
        if kind == ":-":
            return str(rest)
        raise MissingVariable(name)

    text = re.sub(r"^\s*#.*$", "", COMPOSE_FILE.read_text(), flags=re.M)
    document = yaml.safe_load(_VARIABLE.sub(put_in, text))
    assert isinstance(document, dict)
    return document


@dataclass(frozen=True)
class Stage:
    """One stage of a Dockerfile: what it copies from the repository, and how it runs."""

    copies: tuple[tuple[str, str], ...]
    environment: Mapping[str, str]
    command: tuple[str, ...]
    health: tuple[str, ...]
    user: str


def read_dockerfile(path: Path) -> dict[str, Stage]:
    """Return the stages of a Dockerfile by name ('' for one without), each with what it inherits."""
    stages: dict[str, Stage] = {}
    name = ""
    for instruction, rest in _instructions(path):
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = stages.get(base, Stage((), {}, (), (), "root"))
        elif instruction != "ARG":  # before the first stage
            stages[name] = _apply(stages[name], instruction, rest)
    return stages


def assemble(stage: Stage, target: Path) -> None:
    """Copy what a stage copies from the repository into *target*, which stands for its /app."""
    target.mkdir()
    for source, destination in stage.copies:
        if (ROOT / source).is_dir():
            copy_code(ROOT / source, target / destination)
        else:
            shutil.copy(ROOT / source, target / destination)


def _instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line.split(None, 1)[0], re.sub(r"\s+", " ", line.split(None, 1)[1])) for line in lines]


def _apply(stage: Stage, instruction: str, rest: str) -> Stage:
    fields = dict(vars(stage))
    if instruction == "COPY" and not rest.startswith("--from") and not rest.startswith("docker/requirements"):
        *sources, destination = rest.split()
        pairs = [(source, source if destination == "./" else destination) for source in sources]
        fields["copies"] = (*stage.copies, *pairs)
    elif instruction == "ENV":
        fields["environment"] = {**stage.environment, **dict(pair.split("=", 1) for pair in rest.split())}
    elif instruction == "CMD":
        fields["command"] = tuple(yaml.safe_load(rest))
    elif instruction == "HEALTHCHECK":
        fields["health"] = tuple(yaml.safe_load(rest.split("CMD ", 1)[1]))
    elif instruction == "USER":
        fields["user"] = rest
    return Stage(**fields)
