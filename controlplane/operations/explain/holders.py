"""The counters of many tokens and projects at once, with few queries and a bounded number of commands."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import batched
from operator import attrgetter
from typing import Any

import redis

from controlplane.core import store
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain.live import Now
from controlplane.releases.publishing import compile
from enforcement.model import documents
from enforcement.model.instants import to_us
from enforcement.model.keys import together
from enforcement.model.sizes import MAX_LIMITS_PER_REQUEST
from enforcement.plan.rules import Rule, Subject, rules_of
from enforcement.store.client import with_library
from enforcement.store_calls import inspection

# The most commands of one page for the store. Each reads up to 64 counters of one hash tag.
MOST_COMMANDS = 200


@dataclass(frozen=True, slots=True)
class Held:
    """A limit with one counter, and the token or project whose counter it is, None for everything together."""

    holder: Token | Project | None
    rule: Rule

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The scope, the id of the holder, the id of the policy, and the name of the limit."""
        return self.rule.scope, self.holder.pk if self.holder else "", self.rule.policy.id, self.rule.limit.name

    @property
    def tag(self) -> str:
        return self.rule.tag


def held_by(tokens: Iterable[Token], projects: Iterable[Project], now: datetime) -> list[Held]:
    """
    Return the limits with one counter of these tokens and projects, and those of the global policy once.

    They are compiled from SQL, as enforcers have them. Limits that attributes of requests partition are left out.
    """
    tokens, now_us = list(tokens), to_us(now)
    rows = {project.pk: project for project in (*projects, *(token.project for token in tokens))}
    compiled = compile.documents([("global", ""), *(("project", pk) for pk in rows)])
    everywhere = (compiled.get("global") or {}).get("policy")
    read = {pk: documents.parse_project(compiled[f"project:{pk}"] or {}) for pk in rows}
    published = compile.tokens([token.digest for token in tokens], now)
    bare = [(token, document) for token in tokens if (document := published[token.digest])]
    owned = [(token, documents.parse_token(document)) for token, document in bare]
    attached = {everywhere, *(token.policy for _, token in owned)}
    attached |= {pk for project in read.values() for pk in (project.policy, project.anonymous_policy)}
    policies = compile.policies(pk for pk in attached if pk)
    held: dict[Any, Held] = {}
    for row, token in owned:
        for rule in rules_of(Subject(read[row.project_id], token, policies, None), now_us):
            _add(held, Held(row if rule.scope == "token" else rows[row.project_id], rule))
    for pk, project in read.items():
        for rule in rules_of(Subject(project, None, policies, everywhere), now_us):
            _add(held, Held(None if rule.scope == "global" else rows[pk], rule))
    return list(held.values())


def _add(found: dict[Any, Held], held: Held) -> None:
    """Add a limit with one counter, once for each counter. Tokens of a project may have different labels."""
    rule = held.rule
    if rule.has_one_counter:
        values = tuple(rule.labels[name] for name in rule.limit.partition_by)
        found.setdefault((held.key, values), held)


def read(
    client: redis.Redis, held: Iterable[Held], now: datetime, most: int = MOST_COMMANDS
) -> Iterator[tuple[Held, Now]]:
    """
    Yield each limit with its counter now, the first ones if *most* commands do not suffice for all. Nothing is charged.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    keys, now_us, counted = store.keys(), to_us(now), _Counted(client)
    for one_tag in together(held, attrgetter("tag")):
        for some in batched(one_tag, MAX_LIMITS_PER_REQUEST):
            bounds = [one.rule.bind(keys, {}) for one in some]
            # One command, another one at the edge of a calendar window, and one for each limit that carries permits.
            if counted.sent + 2 + sum(bool(one.rule.limit.rollover) for one in some) > most:
                return
            _, states = with_library(client, partial(inspection.look, counted, bounds, now_us))
            for one, (state, used) in zip(some, states, strict=True):
                yield one, Now(state.quota, used, state.remaining, state.reset_ms, state.more_ms)


class _Counted:
    """A client of the store that counts the commands that it sends."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.sent = 0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.sent += 1
        return self._client.execute_command(*args, **options)
