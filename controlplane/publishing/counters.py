"""What is used of each limit right now: the counters that enforcement keeps, read and reset by its own code."""

import json
from datetime import datetime

from django.conf import settings
from django.utils import timezone

from controlplane.policies.models import Limit
from controlplane.projects.models import Project, Token
from controlplane.publishing import compile, store, verbs
from controlplane.publishing.changes import Change
from enforcement import live
from enforcement.documents import parse_global, parse_policy, parse_project, parse_token
from enforcement.live import LiveCounter
from enforcement.plans import Subject


def counters_of(holder: Token | Project) -> list[LiveCounter]:
    """
    Read every limit that falls on a token, or on a project as a whole; nothing is charged.

    Raises:
        One of STORE_ERRORS: The store does not answer.
    """
    now = timezone.now()
    subject = _subject(holder, now)
    client = store.connection(settings.PUBLISH_TIMEOUT_SECONDS)
    return live.live_counters(client, store.keys(), *_parts(subject), now_us=compile.microseconds(now))


def reset(tx: Change, holder: Token | Project, limit: Limit | None = None) -> int:
    """
    Forget what was used of one limit, or of all that are the holder's own, and return how many counters there were.

    Raises:
        One of STORE_ERRORS: The store does not answer; the caller's change is to end without having happened.
    """
    now = timezone.now()
    subject = _subject(holder, now)
    # Before enforcers are told: one that forgot a denial too early would only remember it again.
    count = live.reset_counters(
        store.connection(settings.PUBLISH_TIMEOUT_SECONDS),
        store.keys(),
        *_parts(subject),
        now_us=compile.microseconds(now),
        limit=str(limit) if limit else None,
    )
    verbs.reset_counters(tx, holder, limit)
    return count


def _parts(subject: Subject) -> tuple:
    return subject.project, subject.token, subject.policies, subject.global_policy


def _subject(holder: Token | Project, now: datetime) -> Subject:
    """Compile what enforcers would read of the holder, as SQL has it now."""
    token = holder if isinstance(holder, Token) else None
    project = token.project if token else holder
    documents = compile.documents({("project", project.pk), ("global", "")})
    chosen = parse_global(json.dumps(documents["global"]))
    wanted = {chosen, project.policy_id, token.policy_id if token else None} - {None}
    policies = compile.documents({("policy", policy) for policy in wanted})
    compiled = compile.tokens([token.digest], now)[token.digest] if token else None
    return Subject(
        parse_project(json.dumps(documents[f"project:{project.pk}"])),
        parse_token(json.dumps(compiled)) if compiled else None,
        {name.partition(":")[2]: parse_policy(json.dumps(text)) for name, text in policies.items() if text},
        chosen,
    )
