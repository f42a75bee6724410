"""Which instances have what was published, in words. Nobody says "every" before each of them has said so."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controlplane.changes.audit.models import AuditEntry
from controlplane.operations.health.condition import named
from controlplane.releases.publishing.models import PublishedChange, Revision
from controlplane.traffic.fleet.heartbeats import Fleet
from controlplane.traffic.fleet.models import Instance


@dataclass(frozen=True, slots=True)
class Reached:
    """
    How far a change has come.

    Attributes:
        is_published: Whether it is in the store. Without it, no instance can know of it.
        have, lack: The instances that run it or a later one, and those that do not, by their names.
        lost: Those that do not report any more.
        unknown: Why nobody knows it, as a sentence. Empty if it is known.
        revision: The revision that published it, or None.
    """

    is_published: bool
    have: Sequence[str] = ()
    lack: Sequence[str] = ()
    lost: Sequence[str] = ()
    unknown: str = ""
    revision: Revision | None = None

    @property
    def is_everywhere(self) -> bool:
        """Whether each instance has said that it has it."""
        return self.is_published and bool(self.have) and not (self.lack or self.lost or self.unknown)


def reached(revision: Revision | None, fleet: Fleet, lost: Iterable[Instance] = ()) -> Reached:
    """
    Return how far a revision has come.

    Args:
        revision: None: the change is not published yet.
    """
    if revision is None:
        return Reached(False, lack=[one.pk for one in fleet])
    having = {one.pk: one.runs(revision.number, revision.epoch) for one in fleet}
    have, lack = ([name for name, runs in having.items() if runs is wanted] for wanted in (True, False))
    gone = [one.pk for one in lost if one.pk not in having]
    return Reached(True, have, lack, gone, fleet.unknown, revision)


def change_of(kind: str, pk: str, *actions: str) -> tuple[bool, Revision | None]:
    """Return whether an object was changed so, and the revision that published the last such change, if one has."""
    entries = AuditEntry.objects.filter(object_type=kind, object_id=pk, action__in=actions).order_by("-at", "-id")
    change = entries.values_list("change", flat=True).first()
    if change is None:
        return False, None
    published = PublishedChange.objects.filter(change=change, revision__isnull=False).values("revision")
    return True, Revision.objects.defer("changes").filter(pk__in=published).first()


def sentence(found: Reached, still: str, *, names: bool = True) -> str:
    """
    Return a sentence such as "4 of 5 instances have it; proxy-3 still admits this token.".

    Args:
        still: What an instance does that lacks it, such as "admits this token".
        names: Whether the reader may see instances.
    """
    if not found.is_published:
        return f"Saved, and not published yet: every instance still {still}."
    if found.unknown:
        return f"Nobody knows which instances have it. {found.unknown}"
    total = len(found.have) + len(found.lack)
    if not total:
        return "No instance reports."
    if not found.lack:
        said = f"All {total:,} instances have it" if total > 1 else "The only instance has it"
    elif names:
        who = named(list(found.lack))
        said = f"{len(found.have):,} of {total:,} instances have it; {who} still {_of(still, len(found.lack))}"
    else:
        said = f"{len(found.have):,} of {total:,} instances have it; an operator sees which"
    if found.lost and names:
        said += f"; {named(list(found.lost))} {'is' if len(found.lost) == 1 else 'are'} lost, so nobody knows"
    return f"{said}."


def _of(still: str, count: int) -> str:
    """Return what one or several instances do: "admits this" or "admit this"."""
    verb, _, rest = still.partition(" ")
    return still if count == 1 else f"{verb.removesuffix('s')} {rest}".rstrip()
