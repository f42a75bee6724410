"""An explanation in sentences, for an operator, and for the person who asked."""

from collections.abc import Callable
from datetime import datetime, timedelta

from controlplane.changes.words.describe import amount
from controlplane.core.instants import exact
from controlplane.core.money import permits
from controlplane.operations.explain.answer import Explanation, Line
from controlplane.operations.explain.counts import window_of
from controlplane.operations.explain.emergencies import suspension_then
from enforcement.model.instants import to_us
from enforcement.model.limits import Limit

KEPT_LONGER = {"hour": "hours are", "day": "days are"}

# Each with what a request had to be denied for no limit, from the side of the operator and that of the client.
REFUSALS = {
    "unknown_token": ("It had a token that no enforcer knew.", "its token is not known"),
    "revoked": ("{who} was revoked.", "its token was revoked"),
    "expired": ("{who} had expired.", "its token had expired"),
    "inactive_project": ("The project was inactive.", "the project was inactive"),
    "suspended": (
        "Its token, its project or a value that it had was suspended.",
        "its access is suspended",
    ),
    "token_required": ("It had no token, and the project admits no such requests.", "it had no token"),
    "unknown_project": ("It was for a project that no enforcer knew.", "it was for an unknown project"),
    "too_many_reservations": (
        "The project had as many open reservations as it may have.",
        "too many requests were in progress",
    ),
    "too_many_of_token": (
        "{who} had as many open reservations as one token of a project may have.",
        "too many requests of its token were in progress",
    ),
}
OTHER = ("It was denied for the reason {reason}.", "it was denied for the reason {reason}")


def lead(found: Explanation) -> str:
    """Return the answer in one sentence."""
    case, decided = found.case, found.decided
    if case.facts is None:
        return _of_a_time(found)
    reason = case.facts.reason
    if reason == "suspended" and (known := suspension_then(case)):
        return known
    if reason in REFUSALS:
        return REFUSALS[reason][0].format(who=case.who)
    if reason == "ok":
        return "It was allowed" + (" without the store, which was not reachable." if _is_alone(found) else ".")
    if decided is None:
        return _without_limit(found)
    name, limit = _slashed(decided.match.name), decided.match.limit
    sentences: dict[str, Callable[[], str]] = {
        "limited": lambda: _used_up(found, decided),
        "cost_exceeds_capacity": lambda: f"It cost more than {name} admits at all, which is {amount(limit)}.",
        "degraded_denied": lambda: f"The store was not reachable, and {name} denies requests then.",
        "unpriced_model": lambda: f"{name} counts money, and the model had no price.",
        "unmetered": lambda: f"{name} counts tokens or money, and no meter could read the request.",
    }
    return sentences.get(reason, lambda: OTHER[0].format(reason=reason))()


def _used_up(found: Explanation, decided: Line) -> str:
    name, holder = _slashed(decided.match.name), _holder(found, decided)
    if not _is_alone(found):
        return f"{holder} had used up {amount(decided.match.limit)} of {name}."
    holder = holder[0].lower() + holder[1:] if decided.match.scope != "token" else holder
    return f"The store was not reachable, and {holder} had used up the part of {name} that one process admits alone."


def _is_alone(found: Explanation) -> bool:
    """Return whether a process decided without the store."""
    return found.case.facts is not None and found.case.facts.source == "fallback"


def _holder(found: Explanation, decided: Line) -> str:
    """Return whose requests the limit counts together."""
    project = found.case.project
    holders = {
        "global": "All requests together",
        "project": f"Project {project}",
        "anonymous": f"Requests without a token of {project}",
    }
    return holders.get(decided.match.scope, found.case.who)


def _of_a_time(found: Explanation) -> str:
    """Return the answer about a token and a time, of which no single decision is known."""
    denying = [line for line in found.lines if line.counted and line.counted["denied"]]
    limits = _listed([_slashed(line.match.name) for line in denying])
    of_it = f" of {found.case.who}" if found.case.token else ""
    if found.total is None:
        return f"No request{of_it} is on record in this {found.period.name or 'time'}."
    if not found.total["denied"]:
        return f"No request{of_it} was denied in this {found.period.name}."
    some = _requests(found.total["denied"])
    return f"{some}{of_it} {_were(found.total['denied'])} denied in this {found.period.name}" + (
        f", by {limits}." if denying else "."
    )


def _without_limit(found: Explanation) -> str:
    facts = found.case.facts
    assert facts is not None
    if facts.limit and found.case.project is None:
        return f"It was denied by {facts.limit}, a limit in code, of which the control plane knows nothing."
    if facts.limit:
        return f"It was denied by {_slashed(facts.limit)}, of which the document is no longer known."
    return OTHER[0].format(reason=facts.reason)


def context(found: Explanation) -> list[str]:
    """Return the sentences that follow the first one: when the next request was possible, and the requests around."""
    decided = found.decided
    sentences = []
    if decided and found.case.facts and found.case.facts.reason == "limited" and not _is_alone(found):
        sentences.append(next_request(decided.match.limit, found.case.at, found.now))
    if found.total:
        allowed, denied = found.total["allowed"], found.total["denied"]
        number = _requests(allowed + denied)
        sent = f"it sent {number}" if found.case.token_id else f"there were {number} without a token"
        sentences.append(f"In that {found.period.name} {sent}, and {denied:,} {_were(denied)} denied.")
    if found.glass_then:
        sentences.append(f"The glass was broken then ({found.glass_then.reason}), so no limit denied.")
    if found.period.name in KEPT_LONGER:
        sentences.append(f"That minute is no longer kept; {KEPT_LONGER[found.period.name]}.")
    elif not found.period.name:
        sentences.append("Usage of that time is no longer kept.")
    return sentences


def next_request(limit: Limit, at: datetime, now: datetime) -> str:
    """Return in a sentence when a limit that was full at an instant had room, or an empty string if it is not known."""
    if limit.quota == 0:
        return "It admits no request at all."
    window = window_of(limit, at)
    end = window[1] if window else _room_by(limit, at)
    if end is None:
        return ""
    seconds = max(1, -(-int((end - at).total_seconds() * 1_000) // 1_000))
    latest = "" if window else " at the latest"
    verb = "was" if end <= now else "is"
    moment = _moment(end, seconds=True)
    return f"The next request {verb} possible at {moment}{latest}, {duration(seconds)} after this one."


def _room_by(limit: Limit, at: datetime) -> datetime | None:
    """Return when a limit without fixed windows has room for one request at the latest, or None if nobody can say."""
    if limit.window_seconds is None or limit.unit != "requests" or limit.consistency == "leased":
        return None
    length = limit.window_seconds * 1_000_000
    waits = {
        # The quota of one window, seen from the start of the next one, has room for 1.
        "sliding_window": length - to_us(at) % length,
        "sliding_log": length,
        "token_bucket": -(-length // limit.quota),
    }
    wait = waits.get(limit.algorithm)
    return None if wait is None else at + timedelta(microseconds=wait)


def present(found: Explanation) -> str:
    """Return in a sentence or two whether the same request would pass now."""
    if found.case.project is None:
        return ""
    if found.passes_now and found.glass:
        return f"It would pass now, because the glass is broken until {exact(found.glass.ends_at)}: no limit denies."
    if found.passes_now:
        return "It would pass now."
    if found.refusal:
        return f"It would be refused now: {found.refusal}."
    if found.passes_now is False:
        return f"It would be denied now: no room left in {_listed(list(map(_slashed, found.full)))}."
    if found.store_away:
        return "Whether it would pass now is not known, because counters cannot be read now."
    decided = found.decided
    room = f"{_slashed(decided.match.name)} has room now. " if decided and decided.now and decided.now.remaining else ""
    unknown = _listed([_slashed(line.match.name) for line in found.unknown])
    look = "looks" if len(found.unknown) == 1 else "look"
    because = f"{unknown} {look} at attributes that are not known" if unknown else "not every limit could be read"
    return f"{room}Whether the request would pass is not known, because {because}."


def changed(line: Line) -> str:
    """Return what became of the quota of a limit since, or an empty string if it is the same."""
    if line.quota_now is None:
        return "This limit does not apply any more."
    source = line.source_now
    if line.quota_now == line.match.limit.quota:
        return ""
    quota = permits(line.quota_now, line.match.limit.unit)
    if source and source.kind == "override":
        until = f" until {exact(source.ends_at)}" if source.ends_at else ""
        why = f" ({source.by}: “{source.reason}”)" if source.by else ""
        return f"An override gives it {quota}{until}{why}."
    return f"Its quota is {quota} now."


def reply(found: Explanation) -> str:
    """Return an answer for the person who asked, without names of the house but that of the limit."""
    case = found.case
    at = _moment(case.at, seconds=True)
    if case.facts is None:
        return ""
    reason, decided = case.facts.reason, found.decided
    if reason in REFUSALS:
        return f"Your request at {at} was refused because {REFUSALS[reason][1]}."
    if reason == "ok":
        return f"Your request at {at} was allowed."
    name = decided.match.limit.name if decided else case.facts.limit.rpartition("/")[2]
    if reason == "limited" and decided:
        limit = decided.match.limit
        if _is_alone(found):
            part = "of which we could give out only a part for a moment"
            return f"Your request at {at} was limited by {name}, {part}. Please wait for the time in Retry-After."
        sentences = [f"Your request at {at} was limited by {name}: {amount(limit)} were used up."]
        sentences.append(next_request(limit, case.at, found.now).replace("The next request", "The next one"))
        if decided.quota_now is not None and decided.quota_now != limit.quota:
            sentences.append(_your_limit(decided))
        sentences.append("Please wait for the time in the Retry-After header before you send again.")
        return " ".join(filter(None, sentences))
    if reason == "cost_exceeds_capacity" and decided:
        return (
            f"Your request at {at} was denied because it cost more than {name} admits: {amount(decided.match.limit)}."
        )
    if reason == "degraded_denied":
        return (
            f"Your request at {at} was denied because our limits could not be checked for a moment. Please try again."
        )
    return f"Your request at {at} was denied by {name or 'a rule'}, for the reason {reason}."


def _your_limit(line: Line) -> str:
    limit, source = line.match.limit, line.source_now
    until = f", until {_moment(source.ends_at)}" if source and source.ends_at else ""
    return f"By now your limit is {permits(line.quota_now or 0, limit.unit)}{until}."


def _slashed(name: str) -> str:
    """Return "policy-slug/limit-name" as people read it."""
    policy, slash, limit = name.partition("/")
    return f"{policy} / {limit}" if slash else name


def _requests(number: int) -> str:
    return f"{number:,} request{'' if number == 1 else 's'}"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _moment(at: datetime | None, *, seconds: bool = False) -> str:
    return exact(at, seconds=seconds) if at else ""


def duration(seconds: int) -> str:
    """Return a duration in at most two units, such as "7 h 55 min" or "18 s"."""
    for size, unit, smaller, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            more = rest // smaller
            return f"{whole} {unit}" + (f" {more} {small}" if more else "")
    return f"{seconds} s"
