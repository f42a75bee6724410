"""
The command ``sluicegate explain``.

It shows the limits of a token and what is left of them, and charges nothing. For the id of a decision it shows what the
id carries.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from enforcement.cli.commands import explain_remotely
from enforcement.cli.explain_decision import explain_decision
from enforcement.cli.options import add_store, names_of, new_parser, settings_of
from enforcement.cli.remote.account import is_logged_in
from enforcement.doctor.endpoint import shown
from enforcement.model.documents import ProjectDocument, TokenDocument
from enforcement.model.instants import from_us, time_reply_us
from enforcement.model.keys import Keys
from enforcement.model.tokens import digest, is_well_formed
from enforcement.plan.decision_id import PREFIX, InvalidDecisionId
from enforcement.plan.rules import Subject
from enforcement.settings import named_as
from enforcement.state.published import PublishedState, Snapshot
from enforcement.store.client import connect
from enforcement.store_calls.emergency import last_end
from enforcement.store_calls.inspection import LiveCounter, live_counters

PASSES, REFUSED, UNREADABLE = 0, 1, 2
PATIENCE_SECONDS: Final = 5.0

_EPILOG: Final = """\
exit status for a token:
  0  a request of cost 1 would pass now, by the limits that do not depend on its attributes
  1  the request would be denied; the output says why
  2  the store does not reply or cannot be read, or an option or variable is wrong

exit status for a decision id:
  0  the id is genuine; the output is what it carries
  1  the id was cut, altered, forged, or made with another key
  2  the key is not known: the store does not reply or has none, and SLUICEGATE_DECISION_KEY is not set
"""


class UnreadableDecision(Exception):
    """The store lacks a document that a decision needs."""


@dataclass(frozen=True, slots=True)
class PrintedExplanation:
    """
    The limits that apply to a token, and whether a request would pass.

    Attributes:
        verdict: ``ok``, or the reason of the denial as in a decision.
        revision: The published revision in the store.
        token: None if the store does not know the token.
        project: None if the store does not know the token.
        counters: Empty if the token itself is refused, so that no limit was read.
        suspended_until_us: When its suspension ends, microseconds since the epoch. None: it has no end.
    """

    verdict: str
    revision: int
    token: TokenDocument | None = None
    project: ProjectDocument | None = None
    counters: Sequence[LiveCounter] = ()
    suspended_until_us: int | None = None


def main(arguments: Sequence[str]) -> int:
    """Explain a token or a decision id, print the explanation, and return the exit status."""
    if asks_control_plane(arguments):
        return explain_remotely(arguments)
    options = _parser().parse_args(arguments)
    token = (sys.stdin.readline() if options.token == "-" else options.token).strip()
    try:
        with named_as(names_of(options)):
            settings = settings_of(options)
            keys = Keys(settings.prefix)
            if token.startswith(PREFIX):
                return explain_decision(settings, keys, token, as_json=options.json)
            with connect(settings.url, timeout=PATIENCE_SECONDS, encoding_errors="replace") as client:
                explanation = explain(client, keys, token)
    except InvalidDecisionId as exc:
        print(f"sluicegate explain: {exc}", file=sys.stderr)
        return REFUSED
    except (ValueError, UnreadableDecision) as exc:
        print(f"sluicegate explain: {exc}", file=sys.stderr)
        return UNREADABLE
    except (RedisError, OSError) as exc:
        print(f"sluicegate explain: {shown(settings.url)}: {type(exc).__name__}: {exc}", file=sys.stderr)
        return UNREADABLE
    print(json.dumps(_as_json(explanation), indent=2) if options.json else "\n".join(_lines(explanation)))
    return PASSES if explanation.verdict == "ok" else REFUSED


def asks_control_plane(arguments: Sequence[str]) -> bool:
    """Return whether a control plane answers, which it does if one is known and no option names a store."""
    names_store = any(word.partition("=")[0] in ("--redis", "--prefix", "--store") for word in arguments)
    return not names_store and is_logged_in()


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "sluicegate explain",
        "Show which limits apply to a token, and what is left of them, or what a decision id carries. "
        "Nothing is charged.",
        _EPILOG,
    )
    parser.add_argument(
        "token",
        metavar="TOKEN|ID",
        help="a token as a client sends it, or the id of a decision (dec_...) from a denial; "
        "- reads it from standard input, where no list of processes shows it",
    )
    parser.add_argument("--store", action="store_true", help="ask the store, also after `sluicegate login`")
    add_store(parser)
    return parser


def explain(client: Redis, keys: Keys, secret: str) -> PrintedExplanation:
    """
    Return an explanation of the decision on a token, made from its documents and counters in the store.

    Raises:
        UnreadableDecision: The store holds no documents, or a document that is needed is missing or cannot be read.
        redis.RedisError: The store does not reply, or lacks the function library.
    """
    documents, name = PublishedState(), digest(secret)
    raw: Any = client.hgetall(keys.documents)
    document: Any = client.get(keys.token(name)) if is_well_formed(secret) else None
    problems = documents.load(raw, {name: document})
    if not raw:
        raise UnreadableDecision(
            f"no documents below the prefix {keys.prefix!r}; 'manage.py publish --all' writes them there."
        )
    if not documents.loaded:
        raise UnreadableDecision(f"no documents below the prefix {keys.prefix!r}: {problems[0].reason}")
    state, entry = documents.current, documents.find(name)
    if entry is not None and entry.token is None and entry.problem:
        raise UnreadableDecision(f"the token's document cannot be read: {entry.problem}")
    if entry is None or entry.token is None:
        return PrintedExplanation("unknown_token", state.revision)
    subject = _subject(state, entry.token)
    now_us = _now_us(client)
    refusal = _refusal(state, entry.token, subject.project, now_us)
    counters = () if refusal else _counters(client, keys, subject, now_us)
    verdict = refusal or ("limited" if any(map(_denies, counters)) else "ok")
    suspensions = state.emergency.suspensions(entry.token, now_us) if refusal == "suspended" else [None]
    until_us = last_end(suspensions)
    return PrintedExplanation(verdict, state.revision, entry.token, subject.project, counters, until_us)


def _subject(state: Snapshot, token: TokenDocument) -> Subject:
    """
    Return a token with its project and all policies as a Subject, or raise UnreadableDecision if the project or
    a policy that applies is missing.
    """
    project = state.projects.get(token.project)
    if project is None:
        raise UnreadableDecision(f"the document of project {token.project} is missing or cannot be read")
    for policy in (state.global_policy, project.policy, token.policy):
        if policy is not None and policy not in state.policies:
            raise UnreadableDecision(f"the document of policy {policy} is missing or cannot be read")
    return Subject(project, token, state.policies, state.global_policy)


def _counters(client: Redis, keys: Keys, subject: Subject, now_us: int) -> Sequence[LiveCounter]:
    try:
        return live_counters(client, keys, subject, now_us=now_us)
    except NoPermissionError:  # the account of a proxy may not count the values of a partitioned limit
        return live_counters(client, keys, subject, now_us=now_us, with_values=False)


def _refusal(state: Snapshot, token: TokenDocument, project: ProjectDocument, now_us: int) -> str | None:
    if token.revoked:
        return "revoked"
    if state.emergency.suspensions(token, now_us):
        return "suspended"
    if not state.emergency.is_active(project):
        return "inactive_project"
    return "expired" if token.expires_at_us is not None and now_us >= token.expires_at_us else None


def _denies(counter: LiveCounter) -> bool:
    return counter.mode == "enforce" and counter.unit == "requests" and counter.remaining == 0


def _now_us(client: Redis) -> int:
    return time_reply_us(client.time())


def _as_json(explanation: PrintedExplanation) -> dict[str, object]:
    token, project = explanation.token, explanation.project
    return {
        "verdict": explanation.verdict,
        "revision": explanation.revision,
        "token": token and token.id,
        "project": project and project.slug,
        "suspended_until_us": explanation.suspended_until_us,
        "limits": [asdict(counter) for counter in explanation.counters],
    }


def _lines(explanation: PrintedExplanation) -> Iterator[str]:
    token, project = explanation.token, explanation.project
    who = f"token {token.id} ({token.name}) of project {project.slug}" if token and project else "no such token"
    until_us = explanation.suspended_until_us
    end = f" until {from_us(until_us):%Y-%m-%d %H:%M:%S} UTC" if until_us else ""
    yield f"{explanation.verdict}{end}: {who}, revision {explanation.revision}"
    if not explanation.counters:
        return
    heads = ("limit", "applies to", "algorithm", "quota", "left", "resets in")
    table = [heads, *map(_row, explanation.counters)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    yield ""
    for row in table:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(counter: LiveCounter) -> tuple[str, ...]:
    mode = " (shadow)" if counter.mode == "shadow" else ""
    quota = f"{counter.quota} {counter.unit}{' by override' if counter.override else ''}"
    if counter.rollover:
        quota += f", and up to {counter.rollover} carried"
    left = str(counter.remaining)
    scope = f"the {counter.scope}{mode}" + "".join(f", {name} {value}" for name, value in counter.labels.items())
    if counter.partition_by and counter.used is None:
        values = (
            ""
            if counter.values is None
            else f": {counter.values.present} value{'' if counter.values.present == 1 else 's'}"
        )
        left = f"by {', '.join(counter.partition_by)}{values}"
    reset = "" if counter.reset_ms is None else f"{counter.reset_ms / 1_000:g} s"
    return f"{counter.policy}/{counter.limit}", scope, counter.algorithm, quota, left, reset
