"""The documents that applied to a request, at a revision and now."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controlplane.operations.explain.live_counters import Forgotten, HolderDocuments
from controlplane.operations.explain.question import Case
from controlplane.releases.publishing import kept
from controlplane.releases.publishing.models import Revision
from enforcement.model import documents
from enforcement.model.documents import InvalidDocument, Policy
from enforcement.model.strict_json import dumps
from enforcement.plan.rules import Subject

CHANGES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class State:
    """
    The documents that applied at a revision.

    Attributes:
        revision: The revision. 0 if nothing was published.
        subject: None if they are not known.
        missing: What is not known of them, in words. The rest of *subject* is what was in force then.
    """

    revision: int
    subject: Subject | None
    missing: tuple[str, ...] = ()


def now_for(case: Case, now: datetime) -> Subject | None:
    """Return the documents that apply to a request like that of the case now, or None if the token is gone."""
    holder = case.token or (None if case.token_id else case.project)
    if holder is None:
        return None
    try:
        subject = HolderDocuments.of(holder, now).as_subject()
    except Forgotten:
        return None
    return subject if case.token_id else subject._replace(anonymous=True)


def then_for(case: Case, present: Subject | None) -> State:
    """
    Return the documents that were in force at the revision of the case.

    A document of which no change is known since documents are kept is taken from *present*, the documents of now.
    """
    assert case.project is not None
    project_name, token_name = f"project:{case.project.pk}", f"token:{case.token_id}"
    found = _documents(["global", project_name, token_name], case.revision)
    if project_name not in found:
        return State(case.revision, present, ("all documents of that revision",))
    token, missing = _token(case, found.get(token_name), present)
    if case.token_id and token is None:
        return State(case.revision, None, ("the document of the token",))
    project = documents.parse_project(dumps(found[project_name]))
    subject = Subject(project, token, {}, (found.get("global") or {}).get("policy"), anonymous=not case.token_id)
    wanted = {pk for *_, pk in subject.attached() if pk}
    policies = _policies(wanted, case.revision)
    missing += () if wanted <= set(policies) else ("a policy of that revision",)
    return State(case.revision, subject._replace(policies=policies), missing)


def _token(
    case: Case, document: dict[str, Any] | None, present: Subject | None
) -> tuple[documents.TokenDocument | None, tuple[str, ...]]:
    """Return the token's document at the revision, and what is not known of it."""
    if document:
        return documents.parse_token(dumps(document)), ()
    token = present.token if present else None
    changed = kept.after([f"token:{case.token_id}"], case.revision).exists()
    return token, (("the document of the token",) if token and changed else ())


def _documents(names: list[str], revision: int) -> dict[str, dict[str, Any]]:
    return {row.name: row.document for row in kept.rows_at(names, revision) if row.document}


def _policies(ids: set[str], revision: int) -> dict[str, Policy]:
    """Return those of the policies with these ids that are known at a revision, by id."""
    policies: dict[str, Policy] = {}
    for document in _documents([f"policy:{pk}" for pk in ids], revision).values():
        try:
            policy = documents.parse_policy(dumps(document))
        except InvalidDocument:  # of a later version, before a downgrade
            continue
        policies[policy.id] = policy
    return policies


def changes_since(case: Case, subjects: list[Subject | None]) -> tuple[list[Revision], int]:
    """Return the first revisions after that of the case that changed what applies to it, and the number of all."""
    names = {"global"}
    for subject in filter(None, subjects):
        names |= {f"policy:{pk}" for *_, pk in subject.attached() if pk} | {f"project:{subject.project.id}"}
    names |= {f"token:{case.token_id}"} if case.token_id else set()
    numbers = kept.after(names, case.revision).order_by("revision").values_list("revision", flat=True).distinct()
    shown = Revision.objects.filter(number__in=list(numbers[:CHANGES_SHOWN])).order_by("number").defer("changes")
    return list(shown), numbers.count()
