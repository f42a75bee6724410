"""The line at the top of a token or project that instances refuse: since when, why, and which of them do not yet."""

from collections.abc import Iterator
from dataclasses import dataclass

from django.http import HttpRequest
from django.utils import timezone

from controlplane.objects.emergency.models import is_suspended
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.health.of_fleet import lost_now
from controlplane.operations.health.reached import Reached, change_of, reached, sentence
from controlplane.releases.revisions.listing import seconds
from controlplane.traffic.fleet.heartbeats import fleet_now
from controlplane.web.kit.parts import Panel
from controlplane.web.kit.site import link_to

STILL = {"token": "admits this token", "project": "admits the requests of this project"}


@dataclass(frozen=True, slots=True)
class StateLine:
    """
    What is said of a row that is refused.

    Attributes:
        suspended, revoked: Which instances refuse it for that, in a sentence. Empty if it is not so.
        inactive: The same for a project that is not active.
        published: A link to the revision of the revocation.
        after: After how long the last instance had that.
    """

    suspended: str = ""
    revoked: str = ""
    inactive: str = ""
    published: str = ""
    after: str = ""


def _deeds(row: Token | Project) -> Iterator[tuple[str, str]]:
    """Yield what is the matter with a row, with the action in the audit that says since when."""
    kind = "token" if isinstance(row, Token) else "project"
    if is_suspended(row, timezone.now()):
        yield "suspended", f"{kind}.suspend"
    if isinstance(row, Token) and row.revoked_at:
        yield "revoked", "token.revoke"
    if isinstance(row, Project) and not row.active:
        yield "inactive", "project.update"


def state_line_of(request: HttpRequest, row: Token | Project) -> StateLine:
    deeds = list(_deeds(row))
    if not deeds:
        return StateLine()
    kind, now = str(row._meta.model_name), timezone.now()
    names = request.user.has_perm("fleet.view_instance")
    fleet, lost = fleet_now(), lost_now(now)
    said: dict[str, str] = {}
    last: Reached | None = None
    for name, action in deeds:
        is_known, revision = change_of(kind, row.pk, action)
        if not is_known:  # as it was when the row was created, or before there was an audit
            said[name] = "Instances refuse it."
            continue
        last = reached(revision, fleet, lost)
        said[name] = sentence(last, STILL[kind], names=names)
    found = last.revision if last else None
    published = link_to(found, f"revision {found.number}") if found else ""
    after = seconds(found.lag_ms) if found and last and last.is_everywhere else ""
    return StateLine(**said, published=published, after=after)


STATE_LINE = Panel[Token | Project](
    name="state_line", template="admin/sluicegate/state_line.html", answer=state_line_of
)
