"""Show what the id of a decision carries, for ``sluicegate explain``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

from redis import Redis

from enforcement.model.checks import is_secret
from enforcement.model.documents import InvalidDocument, parse_project
from enforcement.model.instants import from_us
from enforcement.model.keys import Keys
from enforcement.plan.decision_id import DecisionFacts, DecisionKey, mark_of
from enforcement.settings import Settings
from enforcement.store.client import connect

_PATIENCE_SECONDS: Final = 5.0


def explain_decision(settings: Settings, keys: Keys, text: str, *, as_json: bool) -> int:
    """
    Print what a decision id carries, and return 0.

    Raises:
        InvalidDecisionId: The id was cut, altered, forged or made with another key.
        ValueError: There is no key.
        redis.RedisError: The store does not reply.
    """
    if settings.decision_key is not None:
        # Without a control plane there may be no documents, and no store within reach.
        return _print(DecisionKey(settings.decision_key).open(text), "", as_json=as_json)
    with connect(settings.url, timeout=_PATIENCE_SECONDS, encoding_errors="replace") as client:
        secret: Any = client.get(keys.decision_key)
        if not is_secret(secret):
            raise ValueError(
                f"no decision key below the prefix {keys.prefix!r}; the control plane writes it when it publishes. "
                "Without a control plane, set SLUICEGATE_DECISION_KEY as the limiters do."
            )
        facts = DecisionKey(secret).open(text)
        return _print(facts, _project(client, keys, facts.project_mark), as_json=as_json)


def _project(client: Redis, keys: Keys, mark: str) -> str:
    """Return the slug of the project with this mark, or an empty string if the store has none."""
    documents: dict[str, str] = client.hgetall(keys.documents) if mark else {}  # type: ignore[assignment]
    for name, text in documents.items():
        kind, _, ident = name.partition(":")
        if kind == "project" and mark_of(ident) == mark:
            try:
                return parse_project(text).slug
            except InvalidDocument:
                return ident
    return ""


def _print(facts: DecisionFacts, project: str, *, as_json: bool) -> int:
    at = from_us(facts.at_ms * 1_000).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if as_json:
        carried = {"at": at, **asdict(facts), "project": project or None}
        del carried["at_ms"]
        print(json.dumps({name: None if value == "" else value for name, value in carried.items()}, indent=2))
        return 0
    rows = {
        "time": at,
        "reason": facts.reason,
        "limit": facts.limit or "none",
        "token": facts.token or "none",
        "project": project or (f"not in the store ({facts.project_mark})" if facts.project_mark else "none"),
        "instance": facts.instance,
        "revision": str(facts.revision or "none, limits in code"),
        "decided by": facts.source,
    }
    print("\n".join(f"{name:<10}  {value}" for name, value in rows.items()))
    return 0
