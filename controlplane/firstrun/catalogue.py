"""The templates of policies that the first steps offer."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from enforcement.model.limits import Limit as LimitValue

_FILE = Path(__file__).with_name("templates.json")


@dataclass(frozen=True, slots=True)
class PolicyTemplate:
    """A policy as a template has it, with values that the library has checked."""

    slug: str
    name: str
    description: str
    limits: tuple[LimitValue, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """
    Some policies for a common case, and a request that falls under the first of them.

    ``anonymous`` says that the first policy is also for requests without a token.
    """

    id: str
    title: str
    detail: str
    method: str
    path: str
    anonymous: bool
    policies: tuple[PolicyTemplate, ...]


@cache
def templates() -> dict[str, Template]:
    """Return every template by its id, in the order of the page."""
    return {row["id"]: _template(row) for row in json.loads(_FILE.read_text())}


def _template(row: dict[str, Any]) -> Template:
    policies = tuple(
        PolicyTemplate(it["slug"], it["name"], it["description"], tuple(map(LimitValue.from_json, it["limits"])))
        for it in row["policies"]
    )
    sample = row["sample"]
    anonymous = row.get("anonymous", False)
    return Template(row["id"], row["title"], row["detail"], sample["method"], sample["path"], anonymous, policies)
