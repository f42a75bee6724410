"""Questions: a decision by its id, or a token with the attributes of a request and a time."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from django.db.models import Q, QuerySet

from controlplane.core.secret_keys import secret_keys
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing.installation import decision_secret
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.usage.models import DeniedRequest
from enforcement.model.checks import is_secret
from enforcement.model.instants import from_us
from enforcement.model.matching import is_label
from enforcement.model.tokens import PREFIX_LENGTH, SECRET_HEADS, digest, is_well_formed
from enforcement.plan.decision_id import DecisionFacts, DecisionKey, InvalidDecisionId, mark_of

# More tokens than these are not listed to somebody who has typed the name of several.
NAMED = 5
# A secret as people paste it, also with a scheme before it, in quotes, or in an address.
_SECRET = re.compile(rf"(?:{'|'.join(SECRET_HEADS)})[^\s\"'<>&,;]+")


class Unanswerable(LookupError):
    """
    Raised for a question that cannot be answered.

    Attributes:
        field: The wrong field, "decision" or "token".
        reason: The rule that it breaks, as a sentence.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {masked(reason)}")
        self.field, self.reason = field, masked(reason)


def masked(text: str) -> str:
    """Return a text with only the prefix of each secret in it, because it is shown again."""
    return _SECRET.sub(lambda found: _prefix_of(found[0]), text)


def _prefix_of(secret: str) -> str:
    return secret if len(secret) <= PREFIX_LENGTH else f"{secret[:PREFIX_LENGTH]}…"


def secret_in(text: str) -> str:
    """Return the secret of a token in a text, or an empty string if there is no more than a prefix."""
    matched = _SECRET.search(text)
    return matched[0] if matched and len(matched[0]) > PREFIX_LENGTH else ""


@dataclass(frozen=True, slots=True)
class Reach:
    """
    The projects that the asker may see.

    Attributes:
        everything: Whether that is every project. Only then are sums over all projects shown, and names of instances.
    """

    projects: QuerySet[Project]
    tokens: QuerySet[Token]
    everything: bool


@dataclass(frozen=True, slots=True)
class Case:
    """
    One request, as far as it is known.

    Attributes:
        project: None for a limit in code, and for a request with an unknown token.
        token_id: Empty for a request without a token.
        token: None for such a request, and for a token that is deleted by now.
        attributes: Those that are known. All others may have had any value.
        revision: The revision that decided, or that was the last one at the time. 0 if there was none.
        facts: What the id of the decision carries. None if a token and a time were given.
        sample: The sampled denial with that id, if it is in the sample.
    """

    at: datetime
    project: Project | None
    token_id: str
    token: Token | None
    attributes: Mapping[str, str]
    revision: int
    facts: DecisionFacts | None = None
    sample: DeniedRequest | None = None
    decision: str = field(default="")

    @property
    def who(self) -> str:
        """The name of the token, or what stands for one."""
        if self.token:
            return self.token.name
        if self.token_id:
            return f"a deleted token ({self.token_id})"
        return f"a request without a token of {self.project}" if self.project else "a request"


def of_decision(text: str, reach: Reach, attributes: Mapping[str, str] | None = None) -> Case:
    """
    Return the case of a decision id.

    Raises:
        Unanswerable: It is no id of this installation, or the decision is about a project that the asker may not see.
    """
    facts = _opened(text)
    sample = DeniedRequest.objects.filter(decision=text).first()
    token = reach.tokens.select_related("project").filter(pk=facts.token).first() if facts.token else None
    project = token.project if token else _project_of(facts, reach)
    if project is None and not (reach.everything and not facts.project_mark):
        # The same sentence for another's project, a deleted one and one that never was.
        raise Unanswerable("decision", "Must be about a project that exists and that you may see.")
    known = {**_whole(sample.attributes if sample else {}), **(attributes or {})}
    at = from_us(facts.at_ms * 1_000)
    return Case(at, project, facts.token, token, known, facts.revision, facts, sample, text)


def _opened(text: str) -> DecisionFacts:
    """Return the facts in a decision id, which was made with the present key or with that of an earlier SECRET_KEY."""
    own = os.environ.get("SLUICEGATE_DECISION_KEY") or ""
    reason = ""
    for secret in [*([own] if is_secret(own) else []), *map(decision_secret, secret_keys())]:
        try:
            return DecisionKey(secret).open(text)
        except InvalidDecisionId as exc:
            reason = reason or str(exc).partition(": ")[2]
    raise Unanswerable("decision", f"{reason[:1].upper()}{reason[1:]}")


def _project_of(facts: DecisionFacts, reach: Reach) -> Project | None:
    if not facts.project_mark:
        return None
    ids = reach.projects.values_list("pk", flat=True)
    found = [pk for pk in ids.iterator() if mark_of(pk) == facts.project_mark]
    return Project.objects.get(pk=found[0]) if len(found) == 1 else None


def _whole(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return the sampled attributes that were not cut, without labels, which the document of the token has."""
    return {name: value for name, value in attributes.items() if not is_label(name) and not value.endswith("…")}


def of_token(text: str, at: datetime, reach: Reach, attributes: Mapping[str, str] | None = None) -> Case:
    """
    Return the case of a token and a time.

    Args:
        text: The secret of the token, its id, its prefix, or its name. A secret is not kept and in no message.
        at: In any time zone. Usage is looked up by the hours and days of UTC.
        attributes: Those of the request that are known, such as ``method`` and ``path``.
    Raises:
        Unanswerable: It names no token that the asker may see, or several.
    """
    token, at = _token(text, reach), at.astimezone(UTC)
    published = Revision.objects.filter(published_at__lte=at).order_by("-number")
    revision = published.values_list("number", flat=True).first() or 0
    return Case(at, token.project, token.pk, token, attributes or {}, revision)


def _token(text: str, reach: Reach) -> Token:
    tokens = reach.tokens.select_related("project")
    if secret := secret_in(text):
        return _by_secret(secret, tokens)
    named = Q(pk=text) | Q(prefix=text) | Q(name=text)
    found = list(tokens.filter(named).order_by("-created_at", "pk")[: NAMED + 1])
    if not found:
        raise Unanswerable("token", "Must be the id, the prefix, the name or the secret of a token that you may see.")
    if len(found) > 1:
        ids = ", ".join(token.pk for token in found[:NAMED])
        raise Unanswerable("token", f"Must name one token. Give the id of one of these: {ids}.")
    return found[0]


def _by_secret(secret: str, tokens: QuerySet[Token]) -> Token:
    start = secret[:PREFIX_LENGTH]
    if not is_well_formed(secret):
        raise Unanswerable("token", f"Must be a whole secret. The one that begins {start} was cut or mistyped.")
    token = tokens.filter(digest=digest(secret)).first()
    if token is None:
        raise Unanswerable("token", f"Must be the secret of a token that you may see. None begins {start} and fits.")
    return token
