"""Check the functions, the documents, the instances, and the rights of the account."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, cast

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from enforcement.doctor.findings import Finding, pairs
from enforcement.lua import LIBRARY_NAME, library_source
from enforcement.model.calendars import is_host_zone
from enforcement.model.documents import InvalidDocument, loads, parse_intakes, parse_policy
from enforcement.model.keys import GLOBAL_TAG, Keys
from enforcement.store.client import load_library
from enforcement.store_calls.health import BEHIND, UNMETERED, InstanceReport, Judgement, judge
from enforcement.store_calls.instances import HEARTBEAT_LIFETIME_MS
from enforcement.store_calls.reservations import count_reservations
from enforcement.usage.shards import MAX_SHARDS

MOST_SHOWN: Final = 20
_READ_AT_ONCE: Final = 1_000


def functions(client: Redis) -> Iterator[Finding]:
    """
    Yield a finding on the versions of the function library in the server, and load this release's if it is missing.
    """
    found = {}
    for reply in client.function_list(library="sluicegate_*", withcode=True):
        library = pairs(reply)
        found[library["library_name"]] = library["library_code"]
    if LIBRARY_NAME not in found:
        load_library(client)  # as the first limiter would do
        yield Finding("functions", "ok", f"{LIBRARY_NAME} was missing, and is loaded now")
        return
    beside = ", ".join(sorted(found.keys() - {LIBRARY_NAME}))
    value = f"{LIBRARY_NAME}{f', beside {beside}' if beside else ''}"
    if _code(found[LIBRARY_NAME]) == _code(library_source()):
        yield Finding("functions", "ok", value)
    else:
        advice = (
            f"Install the same release everywhere, then run 'FUNCTION DELETE {LIBRARY_NAME}' on the server. "
            "The next decision loads the functions of this release."
        )
        yield Finding("functions", "warning", f"{value}; the source differs from this release", advice)


def _code(source: str) -> list[str]:
    """Return the lines of a Lua source that are code. Releases may differ in their comments."""
    return [line for line in map(str.strip, source.splitlines()) if line and not line.startswith("--")]


def documents(client: Redis, keys: Keys) -> Iterator[Finding]:
    """Yield a finding on the published revision of policies and tokens."""
    names = ["revision", "store_id", "published_at_us"]
    revision, store_id, at = cast("list[str | None]", client.hmget(keys.documents, names))
    if revision is None:
        advice = "Limits in code work. For tokens and policies run 'manage.py publish --all' with this prefix."
        yield Finding("documents", "warning", f"none below the prefix {keys.prefix!r}", advice)
        return
    yield Finding("documents", "ok", f"revision {revision} of store {store_id}, published {_instant(at or '')}")
    yield from _host_zones(cast("dict[str, str]", client.hgetall(keys.documents)))


def _host_zones(found: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding on the limits whose time zone is that of each host. Only release 0.2 accepted them."""
    names = []
    for name in sorted(found):
        if name.startswith("policy:"):
            with suppress(InvalidDocument):  # enforcers report it
                policy = parse_policy(found[name])
                names += [
                    f"{policy.slug}/{it.name} ({it.time_zone})" for it in policy.limits if is_host_zone(it.time_zone)
                ]
    if names:
        more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
        advice = (
            "Each host may read another time there, so hosts have different windows. Use a zone like Europe/Berlin."
        )
        yield Finding("time zones", "warning", f"not an IANA zone: {', '.join(names[:MOST_SHOWN])}{more}", advice)


def instances(client: Redis, keys: Keys) -> Iterator[Finding]:
    """
    Yield a finding on the live instances, or on their number if the account may not read more, and on limits that they
    report.
    """
    try:
        ids = cast("list[str]", client.zrevrange(keys.instances, 0, _READ_AT_ONCE - 1))
        heartbeats = client.mget(map(keys.instance, ids)) if ids else []
    except NoPermissionError:
        since_us = client.time()[0] * 1_000_000 - HEARTBEAT_LIFETIME_MS * 1_000
        alive = client.zcount(keys.instances, since_us, "+inf")
        yield Finding("instances", "ok", f"{alive} alive; this account may count them, but not read them")
        return
    live = sorted(_parsed(heartbeats), key=lambda row: str(row.get("id")))
    present = cast("str | None", client.hget(keys.documents, "revision")) or "0"
    found = judge(map(_report, live), int(present) if present.isdecimal() else 0)
    shown = [f"{row.get('id')} at {row.get('revision')} ({row.get('state')})" for row in live[:MOST_SHOWN]]
    more = [f"and {len(live) - MOST_SHOWN} more"] if len(live) > MOST_SHOWN else []
    value = f"{len(live)} alive{': ' if live else ''}{', '.join(shown + more)}"
    if problems := [it for it in found if it.level == "problem"]:
        advice = f"Instances report that {'; '.join(f'{it.text}: {it.advice}' for it in problems)}."
        yield Finding("instances", "problem", value, advice)
    elif late := [it for it in found if it.kind == BEHIND]:
        yield Finding("instances", "warning", value, f"{late[0].text}. {late[0].advice}")
    else:
        yield Finding("instances", "ok", value)
    yield from _limits(found)
    yield from _unreported(live)
    yield from _crowded(live)
    yield from _fields([*live, _kept(client, keys.last_fields)])
    yield from _broken(live, _kept(client, keys.last_week))


def reservations(client: Redis, keys: Keys) -> Iterator[Finding]:
    """Yield a finding on the reservations that were not settled, if there are any published projects."""
    names = cast("list[str]", list(client.hgetall(keys.documents)))
    projects = [name.partition(":")[2] for name in names if name.startswith("project:")]
    if not projects:
        return
    found = count_reservations(client, keys, [*projects, GLOBAL_TAG]).values()
    lost, since = sum(it.lost for it in found), [it.lost_since_us for it in found if it.lost_since_us is not None]
    value = f"{sum(it.open for it in found)} open, {lost} lost"
    if not lost:
        yield Finding("reservations", "ok", value)
        return
    advice = (
        "Their processes ended before they settled them, and their estimates stay charged. List them in the admin or "
        "over REST, and settle them within the time of their policies (lost_after, an hour by default)."
    )
    yield Finding("reservations", "warning", f"{value}, the oldest since {_instant(str(min(since)))}", advice)


def _report(row: Mapping[str, object]) -> InstanceReport:
    """Return what is judged of a heartbeat, which anybody may have written. Members that make no sense are left out."""
    revision, state, problems = row.get("revision"), row.get("state"), row.get("problems")
    return InstanceReport(
        str(row.get("id")),
        revision if type(revision) is int else -1,
        state if isinstance(state, str) else "",
        [name for name in problems if isinstance(name, str)] if isinstance(problems, list) else (),
        {f"{policy}/{limit}" for _, policy, limit in _reported(row, "unmetered", 3)},
        {(f"{policy}/{limit}", reason) for _, policy, limit, reason in _reported(row, "unsupported", 4)},
    )


def _reported(row: Mapping[str, object], member: str, size: int) -> Iterator[list[str]]:
    """Yield the limits in a member of a heartbeat, each as *size* strings of which the first is the project."""
    limits = row.get(member)
    for name in limits if isinstance(limits, list) else ():
        if isinstance(name, list) and len(name) == size and all(isinstance(part, str) for part in name):
            yield name


def _limits(found: Iterable[Judgement]) -> Iterator[Finding]:
    """Yield a finding on each limit that counts nothing, or that instances cannot enforce."""
    shown: Counter[str] = Counter()
    for it in found:
        shown[it.kind] += 1
        if not it.limit or shown[it.kind] > MOST_SHOWN:
            continue
        where = f"{it.instances[0]} and {len(it.instances) - 1} more" if len(it.instances) > 1 else it.instances[0]
        if it.kind == UNMETERED:
            advice = f"{it.text[:1].upper()}{it.text[1:]}. {it.advice}"
            yield Finding(it.kind, it.level, f"{it.limit} counts nothing at {where}", advice)
        else:
            yield Finding(it.kind, it.level, f"{it.limit} {it.text}, which {where} cannot enforce", it.advice)


def _unreported(live: Iterable[Mapping[str, object]]) -> Iterator[Finding]:
    """Yield a finding on settlements of metered requests that are in no usage row, if there are any."""
    found = {str(row.get("id")): row.get("metered_dropped") for row in live}
    counts = {ident: count for ident, count in found.items() if type(count) is int and count > 0}
    if counts:
        where = ", ".join([*counts][:MOST_SHOWN]) + (", and others" if len(counts) > MOST_SHOWN else "")
        advice = (
            "These instances could not deliver their usage for too long. Limits were charged, but the tokens and the "
            "money of these requests are missing in all reports. Check whether the store takes their usage."
        )
        yield Finding("metered usage", "warning", f"{sum(counts.values())} settlements dropped at {where}", advice)


def _crowded(live: Iterable[Mapping[str, object]]) -> Iterator[Finding]:
    """Yield a finding on requests that proxies refused because others had the places, if there are any."""
    counts: dict[str, int] = {}
    for row in live:
        found = row.get("crowded")
        for share, count in _counted([*map(list, found.items())] if isinstance(found, Mapping) else ()):
            counts[share] = counts.get(share, 0) + count
    said = [f"{counts[share]:,} {text}" for share, text in _SHARES.items() if counts.get(share, 0) > 0]
    if said:
        advice = (
            "If that was usual traffic, raise SLUICEGATE_TOKEN_SHARE, SLUICEGATE_PROJECT_SHARE or "
            "SLUICEGATE_UPSTREAM_PLACES. sluicegate_proxy_requests_refused_total says when and at which proxy."
        )
        yield Finding("places", "ok", f"requests refused since the proxies began: {', '.join(said)}", advice)


_SHARES: Final = {
    "token": "beyond the share of a token",
    "project": "beyond the share of a project",
    "full": "without any place in 5 seconds",
}


def _kept(client: Redis, key: str) -> Mapping[str, object]:
    """Return what the control plane has kept there of instances that may have ended, in the form of one heartbeat."""
    try:
        text = client.get(key)
        found = loads(cast("str", text)) if text else {}
    except (NoPermissionError, InvalidDocument, ResponseError):
        return {}  # enforcers may not read it, and the next run of the worker writes it again
    return found if isinstance(found, Mapping) else {}


def _fields(live: Iterable[Mapping[str, object]]) -> Iterator[Finding]:
    """Yield a finding on the fields of requests that a bound has refused, and on those that it would refuse."""
    for kind, advice in _FIELDS.items():
        counts: dict[str, int] = {}
        for row in live:
            fields = row.get("fields")
            rows = fields.get(kind) if isinstance(fields, Mapping) else None
            for name, count in _counted(rows):
                counts[name] = counts.get(name, 0) + count
        if counts:
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            shown = ", ".join(f"{name} ({count:,})" for name, count in ranked[:MOST_SHOWN])
            yield Finding("fields", "warning" if kind == "refused" else "ok", f"{_SAID[kind]}: {shown}", advice)


def _broken(live: Iterable[Mapping[str, object]], kept: Mapping[str, object]) -> Iterator[Finding]:
    """
    Yield a finding on the models of which answers used more than a bound had reserved, if there are any.

    Args:
        kept: What the control plane has counted. The live instances know of those of the last minutes, too.
    """
    counts: dict[str, int] = {}
    for row in live:
        for name, count in _broken_of(row):
            counts[name] = counts.get(name, 0) + count
    for name, count in _broken_of(kept):
        counts[name] = max(count, counts.get(name, 0))
    if counts:
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        shown = "; ".join(f"{name} ({count:,})" for name, count in ranked[:MOST_SHOWN])
        advice = (
            "Answers used more than a bound had reserved, so budgets may have been exceeded. Input that the provider "
            "adds by itself is reserved from now on. Otherwise check part_tokens and the price of the model."
        )
        yield Finding(
            "bounds", "warning", f"broken lately, by model and format, with all such requests: {shown}", advice
        )


def _broken_of(row: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """Yield models with a format and the number of requests that used more than their bound."""
    rows = row.get("broken")
    for one in rows if isinstance(rows, list) else ():
        if isinstance(one, list) and len(one) == 3 and all(isinstance(name, str) for name in one[:2]):
            yield from _counted([[f"{one[0]}, {one[1]}", one[2]]])


def _counted(rows: object) -> Iterator[tuple[str, int]]:
    """Yield the names and counts of a part of a heartbeat, which anybody may have written."""
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and type(row[1]) is int:
            yield row[0], row[1]


_SAID: Final = {
    "refused": "requests refused by a bound in 7 days, by field",
    "would_refuse": "requests that a bound would refuse of those in 7 days, by field, counted on a sample",
}
_ALLOW = "Add those that cost nothing, or a known factor, to allowed_fields of the upstream, or a rate to the price."
_FIELDS: Final = {
    "refused": f"Nobody has priced or allowed these fields. {_ALLOW}",
    "would_refuse": f"Before you set estimate to bound: {_ALLOW[0].lower()}{_ALLOW[1:]}",
}


def _instant(microseconds: str) -> str:
    """Return microseconds since the epoch as a date and time in UTC, or any other string in quotes."""
    if not microseconds.isdecimal() or len(microseconds) > 16:
        return repr(microseconds)
    return f"{datetime.fromtimestamp(int(microseconds) / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _parsed(heartbeats: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for heartbeat in heartbeats:
        if heartbeat:  # An expired heartbeat is None: the set keeps ids for longer.
            with suppress(InvalidDocument):  # An enforcer did not write this key.
                yield loads(heartbeat)


def rights(client: Redis, keys: Keys) -> Iterator[Finding]:
    """
    Yield a finding on whether this account could change documents.

    It tries commands on keys and fields that do not exist, so that nothing changes. Each refused command leaves an
    entry in the ``ACL LOG`` of the server.
    """
    field, absent = f"doctor-{secrets.token_hex(8)}", keys.token(secrets.token_hex(32))
    attempts = (
        ("HDEL", keys.documents, field),
        ("SET", absent, field, "XX"),
        ("UNLINK", absent),
        ("XDEL", keys.log, "0-1"),
    )
    could = [attempt[0] for attempt in attempts if _may(client, attempt)]
    if could:
        advice = "Fine for the control plane. Give proxies the account 'enforcer': see 'manage.py store_acl'."
        yield Finding("rights", "warning", f"may change policies and tokens ({', '.join(could)})", advice)
    else:
        yield Finding("rights", "ok", "may not change policies or tokens")
        yield from _missing_rights(client, keys)


def _missing_rights(client: Redis, keys: Keys) -> Iterator[Finding]:
    """Yield a finding if the account of an enforcer was made by an earlier release, with other rights."""
    attempts: dict[str, tuple[str, ...]] = {
        "the key of decision ids": ("MGET", keys.decision_key),
        "the prices of models": ("MGET", keys.prices),
    }
    if _may(client, ("GET", f"{keys.scope('proj_0')}doctor")):
        attempts["the shards of usage"] = _append(keys.usage_shard(0))
        attempts["the sample of denials"] = _append(keys.denials)
    else:
        yield from _limited(client, keys)
    missing = [what for what, attempt in attempts.items() if not _may(client, attempt)]
    if missing:
        advice = (
            "The account was made by an earlier release. Run 'manage.py store_acl --apply'. Until then the ids of "
            "decisions cannot be read, limits of money deny every request, the admin lists no sample of denials, usage "
            "is brought into the database by fewer workers, and no enforcer notices evictions."
        )
        yield Finding("account", "warning", f"lacks rights on {', '.join(missing)}", advice)


def _append(stream: str) -> tuple[str, ...]:
    """Return a command that appends nothing, because the server refuses this id."""
    return "XADD", stream, "NOMKSTREAM", "0-0", "instance", "doctor"


def _limited(client: Redis, keys: Keys) -> Iterator[Finding]:
    """Yield a finding on an account that is limited to projects, and on where it reports usage."""
    projects: frozenset[str] = frozenset()
    with suppress(InvalidDocument):
        if text := client.hget(keys.documents, "intakes"):
            projects = parse_intakes(cast("str", text))
    own = [project for project in sorted(projects) if _may(client, _append(keys.intake(project)))]
    again = "Run 'manage.py store_acl --apply --project' for its project."
    if _may(client, _append(keys.usage)):
        advice = f"It can end or erase the usage of all projects, and report it in their name. {again}"
        yield Finding("project", "warning", "limited to projects by an earlier release", advice)
    elif not own:
        value = "limited to projects, and nobody reads the usage that it reports"
        yield Finding("project", "warning", value, again)
    else:
        can = _may(client, ("GET", f"{keys.scope(GLOBAL_TAG)}doctor"))
        more = "it may spoil the counters of global limits" if can else "without counters of global limits"
        advice = (
            "Whoever takes over this proxy can admit or deny requests of all projects under limits of the global "
            "policy, and forge their reservations. 'manage.py store_acl --apply --project SLUG --no-global' takes that "
            "right away; its proxies then refuse such requests, unless they ask a decision service."
        )
        value = f"limited to {', '.join(own)}, with an intake for usage; {more}"
        yield Finding("project", "ok", value, advice if can else "")


def shared_keys(client: Redis, keys: Keys) -> Iterator[Finding]:
    """Yield a finding on keys that nobody can use, as they have another type, or a last id that nothing can follow."""
    streams = [keys.usage, *map(keys.usage_shard, range(MAX_SHARDS)), keys.denials]
    kinds = {**dict.fromkeys(streams, "stream"), keys.instances: "zset", keys.usage_shards: "string"}
    spoilt = [name for name, kind in kinds.items() if _is_spoilt(client, name, kind)]
    if spoilt:
        advice = (
            "The worker of the control plane deletes them within seconds, with what they hold. If they stay, it does "
            "not run, or its account was made by an earlier release: run 'manage.py store_acl --apply'."
        )
        yield Finding("shared keys", "problem", f"spoilt by another program: {', '.join(spoilt)}", advice)


def _is_spoilt(client: Redis, name: str, kind: str) -> bool:
    """Return whether a key has another type. An account that may not ask for it finds out by what it may."""
    try:
        if str(client.type(name)) not in (kind, "none"):
            return True
    except NoPermissionError:
        pass
    # Nothing is added to a stream that has any entry, or had one.
    attempts: dict[str, tuple[str, ...]] = {"stream": ("XADD", name, "NOMKSTREAM", "0-1", "instance", "doctor")}
    attempts |= {"zset": ("ZCOUNT", name, "0", "0"), "string": ("GET", name)}
    try:
        client.execute_command(*attempts[kind])  # type: ignore[no-untyped-call]
    except NoPermissionError:
        return False
    except ResponseError as exc:
        return "WRONGTYPE" in str(exc) or "exhausted" in str(exc)
    return False


def _may(client: Redis, command: tuple[str, ...]) -> bool:
    try:
        client.execute_command(*command)  # type: ignore[no-untyped-call]
    except NoPermissionError:
        return False
    except ResponseError:
        return True  # The command was permitted, and failed for another reason.
    return True
