"""What an audit entry says was done, in words."""

from collections.abc import Iterable

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.words.change import Change, ObjectChange, State
from controlplane.changes.words.fields import Names, Record, until
from controlplane.changes.words.words import Line, lines

VERBS = {
    "create": "created",
    "update": "changed",
    "delete": "deleted",
    "revoke": "revoked",
    "rotate": "rotated",
    "expire": "expired",
    "rollback": "rolled back",
    "undo": "changed back",
    "end": "ended",
    "reset": "counters reset",
    "suspend": "suspended",
    "resume": "resumed",
    "break": "broken, so every limit is a shadow",
    "mend": "mended, so every limit is enforced again",
    "cancel": "cancelled",
    "settle": "settled",
    "release": "given back",
    "password": "password changed",
    "narrow": "limited to fewer projects",
    "prune": "pruned",
    "new_epoch": "new epoch begun",
}
# Types of objects whose name is no word.
KINDS = {
    "modelprice": "price of model",
    "managementkey": "management key",
    "breakglass": "break glass",
    "suspension": "value",
    "acknowledgement": "answer to",
}
# For a suspended value, these say what was done to the value, and not to its suspension.
OF_A_VALUE = {"create": "suspended", "delete": "resumed", "update": "suspended with another end"}


def change_of(entries: Iterable[AuditEntry], state: State = State.APPLIED) -> Change:
    """Return the change that audit entries of one author tell of, with what each of them says, in their order."""
    entries = list(entries)
    by, reason = (entries[-1].actor, entries[-1].reason) if entries else ("", "")
    return Change(tuple(map(_object_of, entries)), state=state, by=by, reason=reason)


def _object_of(entry: AuditEntry) -> ObjectChange:
    named = (entry.object_type, entry.object_id, entry.object_label)
    return ObjectChange(*named, entry.before, entry.after, entry.project or None, entry.action)


def in_words(entry: AuditEntry) -> str:
    """Return an audit entry in words, such as "policy free changed"."""
    kind = entry.action.partition(".")[0]
    if entry.action == "global.set":
        return f"policy {entry.object_label} set or unset as the global policy"
    return f"{KINDS.get(kind, kind)} {entry.object_label} {verb(entry)}"


def verb(entry: AuditEntry) -> str:
    """Return in words what an audit entry says was done to its object, such as "changed"."""
    kind, _, deed = entry.action.partition(".")
    own = OF_A_VALUE.get(deed, "") if kind == "suspension" else ""
    return own or VERBS.get(deed, deed.replace("_", " "))


def sentence(entry: AuditEntry) -> str:
    """Return an audit entry as a sentence, such as "Policy free changed."."""
    said = in_words(entry)
    return f"{said[0].upper()}{said[1:]}."


def lines_of(entry: AuditEntry, names: Names) -> list[Line]:
    """Return what an audit entry says was changed, at least one line."""
    kind, _, deed = entry.action.partition(".")
    if kind == "suspension":
        return [Line(text=verb(entry) + _end_of("break", entry.after or {}))]
    if deed in ("create", "delete", "update", "rollback", "undo", "set"):
        return lines(entry.object_type, entry.before, entry.after, names)
    return [Line(text=VERBS.get(deed, deed.replace("_", " ")) + _end_of(deed, entry.after or {}))]


def _end_of(deed: str, after: Record) -> str:
    """Return until when something is suspended or the glass is broken, or an empty string for any other change."""
    end = {"suspend": after.get("suspended_until"), "break": after.get("ends_at")}.get(deed)
    return f", until {until(end)}" if end else ""


def details(entry: AuditEntry, names: Names) -> list[Line]:
    """Return a line for each field that an audit entry has another value of, also of what is new or gone."""
    return lines(entry.object_type, entry.before, entry.after, names, every_field=True)
