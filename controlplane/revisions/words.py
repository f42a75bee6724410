"""What a change changed, in words, from its audit entry."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controlplane.core.instants import exact
from controlplane.core.money import permits
from controlplane.core.partitions import with_values
from controlplane.policies.describe import amount
from controlplane.policies.differences import NOTHING, differences
from controlplane.policies.models import AuditEntry, Policy
from controlplane.policies.models import Limit as LimitRow
from controlplane.prices.models import RATES
from controlplane.projects.models import Project, Token
from enforcement.model.instants import duration
from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.metered import MONEY

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
}
# What was done to a value is not that its suspension was created.
OF_A_VALUE = {"create": "suspended", "delete": "resumed", "update": "suspended with another end"}
# Fields that the amount of a limit contains, such as "25 requests per minute".
IN_THE_AMOUNT = ("quota", "unit", "window_seconds", "calendar")
POLICIES = ("policy", "anonymous_policy", "token_policy")
PROJECTS = ("project", "within")
TOKENS = ("token", "replaced_by")
WORDS = {
    "match.methods": "methods",
    "match.path": "path",
    "is_global": "applies to every request",
    "partition_by": "counted for each",
    "policy": "policy",
    "anonymous_policy": "policy of requests without a token",
    "token_policy": "policy of new tokens",
    "partition_cap": "values for each limit",
    "expires_at": "end",
    "ends_at": "end",
    "suspended_until": "suspended until",
    "window_seconds": "window",
    "within": "in project",
    "token": "token",
    "charge_on": "charged responses",
    "charge_as": "charged as",
    "time_zone": "time zone",
    "zone": "time zone",
    "replaced_by": "replaced by",
    "managed_by": "managed by",
    "unmetered": "requests without a cost",
    "revoked_at": "revoked",
    "ended_at": "ended",
    "began_at": "began",
    "on_store_failure": "when the store is away",
}
# Fields whose values are words of the program, such as "sliding_window".
ENUMS = ("algorithm", "consistency", "on_store_failure", "unmetered", "channel")
NUMBERS = ("quota", "burst", "partition_cap", "rollover")
USUAL = "requests"
MODES = {"enforce": "enforced", "shadow": "in shadow"}

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """
    One thing that was changed.

    Attributes:
        part: The limit of a policy that it is about, or an empty string.
        text: What happened, if there is no value before and after.
        field: The field that has another value, unless the values say it.
        old: The value before, or an empty string without one.
        new: The value after, or an empty string without one.
    """

    part: str = ""
    text: str = ""
    field: str = ""
    old: str = ""
    new: str = ""

    @property
    def what(self) -> str:
        """What the values belong to, such as "per-minute: counted for each", or an empty string."""
        return ": ".join(filter(None, (self.part, " ".join(filter(None, (self.text, self.field))))))

    def __str__(self) -> str:
        values = " → ".join(filter(None, (self.old, self.new)))
        return ": ".join(filter(None, (self.what, values)))


class Names:
    """The present slugs of the policies and projects, and names of the tokens, that records name by their ids."""

    def __init__(self, records: Iterable[Record | None]) -> None:
        policies: set[str] = set()
        projects: set[str] = set()
        tokens: set[str] = set()
        records = list(filter(None, records))
        for record in records:
            policies |= {record[name] for name in POLICIES if isinstance(record.get(name), str)}
            projects |= {record[name] for name in PROJECTS if isinstance(record.get(name), str)}
            tokens |= {record[name] for name in TOKENS if isinstance(record.get(name), str)}
        self._slugs = dict(Policy.objects.filter(pk__in=policies).values_list("pk", "slug")) if policies else {}
        self._slugs |= dict(Project.objects.filter(pk__in=projects).values_list("pk", "slug")) if projects else {}
        self._money = self._limits_of_money(records)
        self._slugs |= dict(Token.objects.filter(pk__in=tokens).values_list("pk", "name")) if tokens else {}

    @staticmethod
    def _limits_of_money(records: Iterable[Record]) -> set[str]:
        """Return the names of the limits of money among those that records of overrides name."""
        named = {record["limit"] for record in records if _is_override(record)}
        if not named:
            return set()
        rows = LimitRow.objects.filter(unit=MONEY, name__in={name.partition("/")[2] for name in named})
        return {f"{slug}/{name}" for slug, name in rows.values_list("policy__slug", "name")} & named

    def unit_of(self, limit: str) -> str:
        """Return the unit of the limit of an override, as far as it matters how people read its numbers."""
        return MONEY if limit in self._money else USUAL

    @classmethod
    def of(cls, entries: Iterable[AuditEntry]) -> "Names":
        """Return the names in the records of some audit entries."""
        return cls(record for entry in entries for record in (entry.before, entry.after))

    def shown(self, value: str) -> str:
        """Return the slug of a policy or project or the name of a token with this id, or the value itself."""
        return self._slugs.get(value, value)


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
        return lines(entry.before, entry.after, names)
    return [Line(text=VERBS.get(deed, deed.replace("_", " ")) + _end_of(deed, entry.after or {}))]


def _end_of(deed: str, after: Record) -> str:
    """Return until when something is suspended or the glass is broken, or an empty string for any other change."""
    end = {"suspend": after.get("suspended_until"), "break": after.get("ends_at")}.get(deed)
    return f", until {until(end)}" if end else ""


def lines(before: Record | None, after: Record | None, names: Names) -> list[Line]:
    """
    Return what differs between two records of an object, at least one line.

    Args:
        before: None for a new object.
        after: None for a deleted object.
        names: Those of what the records name by an id.
    """
    if before is None or after is None:
        what, present = ("created", after) if before is None else ("deleted", before)
        limits = (present or {}).get("limits", [])
        return [Line(text=what), *(_whole(limit, what) for limit in limits), *_override(before, after, names)]
    found = [*_override(before, after, names), *_limits(before, after), *_fields(before, after, names)]
    return found or [Line(text="as it was")]


def _whole(limit: Record, what: str) -> Line:
    said = limit_in_words(limit)
    return Line(part=limit["name"], new=said) if what == "created" else Line(part=limit["name"], old=said)


def limit_in_words(limit: Record) -> str:
    """Return the record of a limit in words, such as "25 requests per minute, in shadow"."""
    try:
        said = amount(Limit.from_json(limit_of(limit), published=True))
    except InvalidLimit:  # of an earlier version, or written by another program
        said = f"quota {limit.get('quota')}"
    return said if limit.get("mode", "enforce") == "enforce" else f"{said}, {MODES['shadow']}"


def limit_of(record: Record) -> Record:
    """Return the fields of the library's value of a limit in one of its records."""
    return {name: value for name, value in record.items() if name not in ("id", "policy", "position")}


def details(entry: AuditEntry, names: Names) -> list[Line]:
    """Return a line for each field that an audit entry has another value of, also of what is new or gone."""
    before, after = entry.before or {}, entry.after or {}
    old, new = ({limit["name"]: limit for limit in record.get("limits", [])} for record in (before, after))
    parts = {"": ({**before, "limits": []}, {**after, "limits": []})}
    parts |= {name: (old.get(name, {}), new.get(name, {})) for name in dict.fromkeys([*old, *new])}
    return [
        Line(part, "", worded(field), _value(field, was, names, both[0]), _value(field, becomes, names, both[1]))
        for part, both in parts.items()
        for field, was, becomes in differences(*both)
    ]


def _limits(before: Record, after: Record) -> Iterator[Line]:
    """Yield what differs between the limits of two records of a policy."""
    old, new = ({limit["name"]: limit for limit in record.get("limits", [])} for record in (before, after))
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            yield Line(part=name, text="removed", old=limit_in_words(old[name]))
        elif name not in old:
            yield Line(part=name, text="added", new=limit_in_words(new[name]))
        elif old[name] != new[name]:
            yield from _limit(name, old[name], new[name])


def _limit(name: str, old: Record, new: Record) -> Iterator[Line]:
    said = limit_in_words(old), limit_in_words(new)
    told = {"mode"}
    if said[0] != said[1]:
        told |= set(IN_THE_AMOUNT)
        enforced = f", {MODES['enforce']}" if old.get("mode") == "shadow" != new.get("mode") else ""
        yield Line(part=name, old=said[0], new=said[1] + enforced)
    for field, *values in differences(old, new):
        if field in NUMBERS:
            values = [_number(value, one.get("unit", USUAL)) for value, one in zip(values, (old, new), strict=True)]
        if field not in told:
            yield Line(name, "", worded(field), *values)


def _fields(before: Record, after: Record, names: Names) -> Iterator[Line]:
    """Yield the fields outside of limits that differ."""
    for field, old, new in differences({**before, "limits": []}, {**after, "limits": []}):
        if _is_override(after) and field in ("quota", "burst", "ends_at", "partition"):
            continue
        values = (_value(field, value, names, of) for value, of in ((old, before), (new, after)))
        yield Line("", "", worded(field), *values)


def _value(field: str, value: str, names: Names, of: Record) -> str:
    """Return the value of a field of a record as people read it."""
    if field.endswith(("_at", "_until")) and value != NOTHING:
        return until(value)
    if field.endswith("_seconds") and value.isdecimal():
        return duration(int(value))
    if field == "mode":
        return MODES.get("enforce" if value == NOTHING else value, value)  # a record leaves out the usual mode
    if field in ENUMS:
        return value.replace("_", " ")
    if field in NUMBERS:
        return _number(value, names.unit_of(of["limit"]) if _is_override(of) else of.get("unit", USUAL))
    # Alert rules and prices have amounts of money, too.
    if field == "amount" or ("currency" in of and field in (*RATES, "calls")):
        return _number(value, MONEY)
    return names.shown(value)


def _number(value: str, unit: str) -> str:
    """Return a number of permits as people read it."""
    return permits(int(value), unit) if value.isdecimal() else value


def worded(field: str) -> str:
    """Return the name of a field for people, such as "counted for each" for ``partition_by``."""
    return WORDS.get(field, field.replace("match.attributes.", "").replace("_", " ").replace(".", " "))


def _is_override(record: Record | None) -> bool:
    return bool(record) and {"quota", "limit", "ends_at"} <= record.keys()


def _override(before: Record | None, after: Record | None, names: Names) -> Iterator[Line]:
    """Yield the quota of an override with its end, if that is what two records are of and it differs."""
    if _is_override(before) or _is_override(after):
        said = [_quota(record, names.unit_of(record["limit"])) if record else "" for record in (before, after)]
        if said[0] != said[1]:
            yield Line(part=(after or before or {})["limit"], old=said[0], new=said[1])


def _quota(record: Record, unit: str) -> str:
    burst = f", bursts of {permits(record['burst'], unit)}" if record.get("burst") is not None else ""
    end = f" until {until(record['ends_at'])}" if record.get("ends_at") else " without an end"
    values = with_values(record.get("partition", ""))
    return f"{permits(record['quota'], unit)}{values}{burst}{end}"


def until(instant: str) -> str:
    """Return an instant of a record as every page writes it. A record has the zone of whoever made the change."""
    try:
        at = datetime.fromisoformat(instant)
    except ValueError:
        return instant
    return exact(at) if at.tzinfo else instant
