"""The detail of a preview that is too large for a page, as a job that replays some callers at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db.models import Q
from django.utils import timezone

from controlplane.changes.words.describe import sentence
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.operations.jobs import run
from controlplane.operations.jobs.kinds import kind
from controlplane.operations.jobs.models import Job
from controlplane.releases.preview import words
from controlplane.releases.preview.supposed import Supposed
from controlplane.releases.review.affected import named
from controlplane.releases.review.reviews import Review
from controlplane.traffic.callers.kinds import ANONYMOUS, PROJECT, TOKEN, Caller
from enforcement.model.limits import Limit

if TYPE_CHECKING:  # numpy, which only a preview needs
    from controlplane.releases.preview.previews import Affected, Preview, Range, Recorded

JOB = "replay"


def start_replay(review: Review, limits: Sequence[Limit], projects: Collection[str] | None, **author: Any) -> Job:
    """
    Start the job that replays each caller whom some limits could have denied, and return it.

    If the same person has asked for the same and that job waits or runs, it is returned.

    Args:
        review: With its preview, whose span is replayed.
        limits: All of them are judged as if they were enforced.
        projects: The ids of the projects that the reader may see. None: all of them.
        author: The fields of the job that say who started it.
    """
    found = review.preview
    assert found is not None
    arguments = {
        "policy": review.policy.pk,
        "is_global": review.policy.is_global,
        "limits": [limit.to_json() for limit in limits],
        "supposed": review.supposed.to_json(),
        "from": found.starts.isoformat(),
        "to": found.ends.isoformat(),
        "all_projects": projects is None,
    }
    if present := _active(arguments, author):
        return present
    seen = None if projects is None else set(projects)
    suspects = _recorded(arguments, review.policy, seen, timezone.now()).suspects(limits)
    # Whoever may not see all of them may not see the result, which names callers.
    concerned = Project.objects.all() if seen is None else Project.objects.filter(pk__in=seen)
    if (supposed := review.supposed).holders is not None:
        of_tokens = Project.objects.filter(tokens__in=supposed.ids(TOKEN))
        named = [*supposed.ids(PROJECT), *supposed.ids(ANONYMOUS), *supposed.projects]
        concerned = concerned.filter(Q(pk__in=named) | Q(pk__in=of_tokens))
    elif not review.policy.is_global:
        concerned = concerned.filter(slug__in=review.projects)
    return run.start(
        JOB,
        f"Replay {words.span_of(found)} of {review.subject}",
        ids=[f"{of_kind}:{pk}" for of_kind, pk in suspects],
        projects=concerned,
        arguments=arguments,
        **author,
    )


def _active(arguments: Mapping[str, Any], author: Mapping[str, Any]) -> Job | None:
    """Return the job that somebody has started for the same replay, if it has not ended."""
    jobs = Job.objects.active().filter(kind=JOB, user=author.get("user"), key=author.get("key"))
    if author.get("user") is None and author.get("key") is None:
        return None
    # The end is that of what is recorded by now, so it differs from one minute to the next.
    asked = json.loads(json.dumps({**arguments, "to": ""}))
    return next((job for job in jobs if {**job.arguments, "to": ""} == asked), None)


@kind(JOB, writes=False)
def replay_parts(job: Job) -> bool:
    """
    Replay the next callers of a job, and return whether these were the last ones.

    Raises:
        ValidationError: The policy is gone, or whoever started the job may not see all that it reads any more.
    """
    policy = Policy.objects.filter(pk=job.arguments["policy"]).first()
    if policy is None:
        raise ValidationError("The policy was deleted.")
    policy.is_global = job.arguments["is_global"]  # perhaps it is what the review was about
    limits = _limits(job.arguments)
    recorded = _recorded(job.arguments, policy, _concerned(job, _seen(job)), job.created_at)
    known = recorded.preview_of(limits, [])  # reads what all parts of this slice need
    for ids in run.parts_in_time(job):
        found = recorded.preview_of(limits, [_caller(one) for one in ids])
        job.result = _together(job.result, found)
    if run.has_more_parts(job):
        return False
    of_whom = "all projects together" if policy.is_global else "each token or project"
    judged = [f"{limit.name}: {sentence(limit, of_whom)}" for limit in limits]
    job.result = {"limits": judged, **_in_words(job.result, known)}
    return True


def _recorded(arguments: Mapping[str, Any], policy: Policy, seen: set[str] | None, now: datetime) -> Recorded:
    from controlplane.releases.preview.previews import Recorded  # numpy, which only a preview needs

    span = datetime.fromisoformat(arguments["from"]), datetime.fromisoformat(arguments["to"])
    return Recorded(policy, now, span, seen, Supposed.from_json(arguments["supposed"]))


def _limits(arguments: Mapping[str, Any]) -> list[Limit]:
    return [Limit.from_json(limit, published=True) for limit in arguments["limits"]]


def _seen(job: Job) -> set[str] | None:
    """Return the ids of the projects that the author of a job may see now, or None for all of them."""
    limited = not job.arguments["all_projects"]
    if job.user is not None and job.user.is_staff:
        if is_operator(job.user):
            return None
        if limited:
            return set(projects_of(job.user).values_list("pk", flat=True))
    if job.key is not None and job.key.is_live and job.key.allows("usage:read"):
        if job.key.all_projects:
            return None
        if limited:
            return set(job.key.projects.values_list("pk", flat=True))
    raise ValidationError(f"{job.created_by} may not see all of these projects any more.")


def _concerned(job: Job, seen: set[str] | None) -> set[str] | None:
    """
    Return the ids of the projects that the result may tell of, or None for all of them.

    Another project may have got the policy meanwhile. Whoever may see all projects of the job may not see that one.
    """
    if job.arguments["is_global"]:
        return seen
    own = set(job.projects.values_list("pk", flat=True))
    return own if seen is None else own & seen


def _caller(name: str) -> Caller:
    of_kind, _, pk = name.partition(":")
    return of_kind, pk


def _together(result: dict[str, Any], found: Preview) -> dict[str, Any]:
    """Return the result of a job with that of some more callers."""
    from controlplane.releases.preview.previews import MOST_AFFECTED

    before, ranges = result.get("would_deny", {}), {"callers": found.caught, "requests": found.denied}
    affected = [*result.get("most_affected", []), *map(_affected, found.affected)]
    return {
        "would_deny": {name: _sum(before.get(name, {}), more) for name, more in ranges.items()},
        "most_affected": sorted(affected, key=lambda one: -one["would_deny"]["likely"])[:MOST_AFFECTED],
        "seconds": max(result.get("seconds", 0), found.step),
        "cautions": list(dict.fromkeys([*result.get("cautions", []), *found.cautions])),
    }


def _sum(before: Mapping[str, int], more: Range) -> dict[str, int]:
    return {name: before.get(name, 0) + number for name, number in more.to_json().items()}


def _affected(one: Affected) -> dict[str, Any]:
    of_kind, pk = one.caller
    denied = one.denied.to_json()
    return {"kind": of_kind, "id": pk, "requests": one.requests, "would_deny": denied, "busiest_minute": one.busiest}


def _in_words(result: dict[str, Any], known: Preview) -> dict[str, Any]:
    """Return the result of a job that has ended, with its sentences."""
    from controlplane.releases.preview.previews import Range

    result = result or _together({}, known)
    callers, requests = (Range(**result["would_deny"][name]) for name in ("callers", "requests"))
    found = replace(known, caught=callers, denied=requests, step=result["seconds"], cautions=result["cautions"])
    names = named([(one["kind"], one["id"]) for one in result["most_affected"]])
    affected = [{**one, "name": names.get((one["kind"], one["id"]), ("", ""))[0]} for one in result["most_affected"]]
    return {
        "summary": words.sentence(found),
        "resolution": words.resolution(found),
        "notes": words.gaps(found),
        "callers": known.callers,
        "requests": known.requests,
        "would_deny": result["would_deny"],
        "most_affected": affected,
        "seconds": result["seconds"],
    }
