"""The templates of policies that the first steps offer."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from controlplane.web.kit.snippets import Sample
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.metered import MONEY

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

    Attributes:
        sample: That request.
        anonymous: Whether the first policy is also for requests without a token.
    """

    id: str
    title: str
    detail: str
    sample: Sample
    anonymous: bool
    policies: tuple[PolicyTemplate, ...]

    @property
    def needs_prices(self) -> bool:
        """Whether a limit counts money, so that a model without a price is denied."""
        return any(limit.unit == MONEY for policy in self.policies for limit in policy.limits)


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
    body = json.dumps(sample["body"]) if "body" in sample else ""
    request = Sample(sample["method"], sample["path"], body, sample.get("costs", {}))
    return Template(row["id"], row["title"], row["detail"], request, row.get("anonymous", False), policies)
