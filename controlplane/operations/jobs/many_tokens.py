"""Changes of many tokens, which a request makes if they are some hundred, and a job if they are more."""

from collections.abc import Callable, Iterable
from copy import copy
from datetime import datetime
from itertools import batched
from time import monotonic
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet

from controlplane.changes.change.transaction import AT_ONCE, OpenChange, change
from controlplane.objects.people.roles import OWNER
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.actions import delete_tokens, locked_tokens, revoke_tokens
from controlplane.objects.projects.models import Project, Token, check_is_future
from controlplane.operations.jobs import run
from controlplane.operations.jobs.actions import author_of, check_author
from controlplane.operations.jobs.kinds import kind
from controlplane.operations.jobs.models import Job

JOB, DELETION = "tokens", "project deletion"
# More tokens than this are changed by a job, and more than a job may have by none.
MOST_IN_A_REQUEST = 500
MOST_IN_A_JOB = 100_000

Deed = Callable[[OpenChange, QuerySet[Token], dict[str, Any]], int]


def revoke(tx: OpenChange, tokens: QuerySet[Token], arguments: dict[str, Any]) -> int:
    """Revoke the tokens that are not revoked yet, and return their number."""
    return revoke_tokens(tx, tokens)


def delete(tx: OpenChange, tokens: QuerySet[Token], arguments: dict[str, Any]) -> int:
    """Delete the tokens, and return their number."""
    return delete_tokens(tx, tokens)


def set_policy(tx: OpenChange, tokens: QuerySet[Token], arguments: dict[str, Any]) -> int:
    """
    Give the tokens the policy with this id as ``policy``, or none for None, and return how many had another one.

    Raises:
        ValidationError: The policy is deleted by now.
    """
    policy = Policy.objects.filter(pk=arguments["policy"]).first() if arguments["policy"] else None
    if arguments["policy"] and policy is None:
        raise ValidationError({"policy": "The policy does not exist any more."})

    def edit(token: Token) -> bool:
        token.policy = policy
        return policy is None or policy.project_id in (None, token.project_id)

    return _change(tx, tokens, edit, "policy")


def set_expiry(tx: OpenChange, tokens: QuerySet[Token], arguments: dict[str, Any]) -> int:
    """
    Give the active tokens this end as ``expires_at``, or none for None, and return how many had another one.

    Raises:
        ValidationError: The end is over by now.
    """
    end = datetime.fromisoformat(arguments["expires_at"]) if arguments["expires_at"] else None
    check_is_future("expires_at", end)

    def edit(token: Token) -> bool:
        live = token.is_live
        token.expires_at = end
        return live

    return _change(tx, tokens, edit, "expires_at")


def set_label(tx: OpenChange, tokens: QuerySet[Token], arguments: dict[str, Any]) -> int:
    """
    Give the tokens the label ``name`` with this ``value``, or take it away for None, and return how many changed.

    A token that has as many labels as it may have stays as it is.
    """

    def edit(token: Token) -> bool:
        token.labels = labels_with(token, arguments)
        return True

    return _change(tx, tokens, edit, "labels")


def labels_with(token: Token, arguments: dict[str, Any]) -> dict[str, str]:
    """Return the labels of a token as ``set_label`` makes them, which are the present ones if it may not have more."""
    name, value = arguments["name"], arguments["value"]
    others = {label: it for label, it in token.labels.items() if label != name}
    changed = copy(token)
    changed.labels = others if value is None else {**others, name: value}
    try:
        changed.check_labels()
    except ValidationError:
        return token.labels
    return changed.labels


DEEDS: dict[str, Deed] = {
    "revoke": revoke,
    "delete": delete,
    "policy": set_policy,
    "expiry": set_expiry,
    "label": set_label,
}


def _change(tx: OpenChange, tokens: QuerySet[Token], edit: Callable[[Token], bool], field: str) -> int:
    """Edit and record the tokens with few statements, without those for which *edit* returns False."""
    count = 0
    for some in batched(locked_tokens(tokens), AT_ONCE):
        before = [token.as_record() for token in some]
        edited = [(token, was) for token, was in zip(some, before, strict=True) if edit(token)]
        changed = [(token, was, token.as_record()) for token, was in edited if token.as_record() != was]
        Token.objects.bulk_update([token for token, *_ in changed], [field], batch_size=AT_ONCE)
        if changed:
            tx.record_many("token.update", changed)
        count += len(changed)
    return count


@kind(JOB)
def change_parts(job: Job) -> bool:
    """
    Change the next parts of the tokens that were confirmed, and return whether these were the last ones.

    Raises:
        ValidationError: Whoever started the job may not do that any more, or what the tokens get is gone.
    """
    check_author(job)
    changed = job.result.get("changed", 0)
    with change(actor=author_of(job), reason=job.reason) as tx:
        for ids in run.parts_in_time(job):
            tokens = Token.objects.filter(pk__in=ids, project__in=job.projects.all())
            changed += DEEDS[job.arguments["deed"]](tx, tokens, job.arguments)
    job.result = {"changed": changed, "left as they were": job.done - changed}
    return not run.has_more_parts(job)


def is_large(projects: Iterable[str] | QuerySet) -> bool:
    """Return whether the projects with these ids have so many tokens together that only a job deletes them."""
    tokens = Token.objects.filter(project__in=projects)
    return tokens.order_by()[: MOST_IN_A_REQUEST + 1].count() > MOST_IN_A_REQUEST


def start_deletion(tx: OpenChange, project: Project, **author: Any) -> Job:
    """
    Make a project inactive, start the job that deletes it with all of its tokens, and return the job.

    The caller has locked the project. If such a job waits or runs already, that one is returned.

    Args:
        author: The fields of the job that say who started it, and the reason.
    """
    present = Job.objects.active().filter(kind=DELETION, projects=project).first()
    if present is not None:
        return present
    if project.active:
        # Proxies refuse all of its tokens from now on, and not one part after the other.
        before = project.as_record()
        project.active = False
        project.save(update_fields=["active"])
        tx.updated(project, before)
    total = Token.objects.filter(project=project).count()
    return run.start(DELETION, f"Delete the project {project}", projects=[project], total=total, **author)


@kind(DELETION)
def delete_some(job: Job) -> bool:
    """
    Delete some more tokens of a project, or the project itself once it has none, and return whether it is deleted.

    Tokens that somebody adds meanwhile are deleted, too.

    Raises:
        ValidationError: Whoever started the job may not do that any more.
    """
    project = job.projects.select_for_update(of=("self",)).first()
    if project is None:
        return True  # somebody else has deleted it meanwhile
    check_author(job, OWNER, "projects:write")
    until, tokens = monotonic() + run.SLICE_SECONDS, Token.objects.filter(project=project).order_by("pk")
    with change(actor=author_of(job), reason=job.reason) as tx:
        while some := list(tokens.values_list("pk", flat=True)[: run.AT_ONCE]):
            job.done += delete_tokens(tx, Token.objects.filter(pk__in=some))
            if monotonic() >= until:
                return False
        tx.delete(project)
    job.result = {"deleted tokens": job.done}
    return True
