"""
Divide usage by project, for an account of the store that is limited to projects.

Such an account writes the rows of each project to the intake of that project, and not to the streams that all share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from enforcement.usage.batch import OutgoingBatch, as_json

_PROJECT: Final = 1
_PROJECT_OF_DENIAL: Final = 3


def id_in_intake(batch: str, project: str) -> str:
    """
    Return the id under which the control plane counts a batch of an intake.

    It differs from the ids of others, so that nobody can have their batches taken for counted ones.
    """
    return f"{batch}/{project}"


def by_project(batch: OutgoingBatch) -> dict[str, OutgoingBatch]:
    """
    Return a batch for each project in a batch, by the id of the project. All of them have its id.

    What is learned from the samples holds for all projects, and the control plane does not take it from here.
    """
    rows: dict[str, list[object]] = {}
    spreads: dict[str, list[object]] = {}
    spread_of = {index: parts for index, *parts in json.loads(batch.spread or "[]")}
    for index, row in enumerate(json.loads(batch.rows)):
        own = rows.setdefault(row[_PROJECT], [])
        if index in spread_of:
            spreads.setdefault(row[_PROJECT], []).append([len(own), *spread_of[index]])
        own.append(row)
    metered, broken = (_divided(json.loads(text or "[]"), _PROJECT) for text in (batch.metered, batch.broken))

    def text(of: dict[str, list[object]], project: str) -> str:
        return as_json(of[project]) if project in of else ""

    return {
        project: batch._replace(
            rows=as_json(rows.get(project, [])),
            metered=text(metered, project),
            spread=text(spreads, project),
            broken=text(broken, project),
            samples="",
            shard=None,
        )
        for project in sorted(rows.keys() | metered.keys() | broken.keys())
    }


def denials_by_project(rows: str) -> dict[str, str]:
    """Return the JSON lists of sampled denials by the id of their project. Those without a project are left out."""
    divided = _divided(json.loads(rows), _PROJECT_OF_DENIAL)
    return {project: as_json(of_project) for project, of_project in divided.items() if project}


def _divided(rows: Iterable[Any], at: int) -> dict[str, list[Any]]:
    divided: dict[str, list[object]] = {}
    for row in rows:
        divided.setdefault(row[at], []).append(row)
    return divided
