"""What several policy files say of one object, where the one that is applied last would win."""

from __future__ import annotations

from collections.abc import Iterable

from enforcement.policy_files.policy_file import PolicyFile
from enforcement.policy_files.source import InvalidFile, Path


def clashes(files: Iterable[PolicyFile]) -> list[InvalidFile]:
    """Return an error of each project and policy that an earlier one of the files describes too."""
    found: list[InvalidFile] = []
    first: dict[tuple[str, str], PolicyFile] = {}
    for file in files:
        for what, path in _objects(file):
            before = first.setdefault(what, file)
            if before is not file:
                kind, slug = what
                reason = f"Must be in one file only, but the {kind} {slug} is also in {before.source_name}."
                found.append(file.error(path, reason))
    return found


def _objects(file: PolicyFile) -> Iterable[tuple[tuple[str, str], Path]]:
    """Yield what a file describes, and where."""
    if file.project:
        yield ("project", file.project["slug"]), ("project", "slug")
    for index, slug in enumerate(file.policies):
        yield ("policy", slug), ("policies", index, "slug")
