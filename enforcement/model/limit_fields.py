"""
The fields of a limit, with the label, help, rule and words of each.

Schemas, forms, columns, differences and the reference are made from this table, or are checked against it. It knows
the JSON values of a limit only, so that a record that an earlier version wrote has words, too. Enforcers do not import
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Final

from enforcement.model.calendars import CALENDARS
from enforcement.model.instants import duration
from enforcement.model.limits import ALGORITHMS, CONSISTENCIES, MAX_WINDOW_SECONDS, MODES, STORE_FAILURES, Limit
from enforcement.model.matching import LABEL_PREFIX, is_label
from enforcement.model.metered import CHARGE_AS, FULL_WEIGHT, MAX_WEIGHT, METERED_UNITS, MONEY, TOKEN_UNITS, UNMETERED
from enforcement.model.sizes import (
    MAX_MATCH_RULES,
    MAX_NAME_LENGTH,
    MAX_NUMBER,
    MAX_PARTITIONS,
    MAX_PATTERN_LENGTH,
    MAX_PATTERNS_PER_RULE,
    MAX_UNIT_LENGTH,
    MAX_ZONE_LENGTH,
)

Record = Mapping[str, Any]
Path = tuple[str, ...]
Schema = dict[str, Any]
Money = Callable[[int], str]
"""Returns millionths of the currency as people read them, such as ``5.00 USD``."""
Words = Callable[[Any, Record, Money], str]

IN_THE_AMOUNT: Final = ("quota", "unit", "window_seconds", "calendar")
"""The fields in an amount. That of slots leaves out how long they live."""
EMPTY: Final[tuple[object, ...]] = (None, "", [], {})
"""The values in a record of a field that is not set."""
REQUIRED: Final = object()
"""In place of a default."""
MORE: Final = "more"
"""The order of a number of which a greater one admits more."""
ANCHORED: Final = ("day", "week", "month", "year")
ENDING: Final = tuple(name for name in CALENDARS if name != "lifetime")
WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
FIRST, WHICH, HOW, OUTAGE, METERED = (
    *("", "Which requests", "How it counts", "If the store is unreachable", "Tokens and money"),
)
"""The parts of a form. The first has no title."""


@dataclass(frozen=True, slots=True)
class Is:
    """A condition on another field of the limit, which has one of some values. None stands for a field left out."""

    field: str
    values: tuple[object, ...]

    def holds(self, limit: Record) -> bool:
        """Return whether a limit, of which fields may be left out, meets the condition."""
        return BY_NAME[self.field].value_in(limit) in self.values


@dataclass(frozen=True, slots=True)
class Choice:
    """
    A value of a field with a few.

    Attributes:
        words: The value as people read it in a sentence.
        why: What a form says of it.
    """

    words: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """
    A field of a limit.

    Attributes:
        label: Its name for people.
        help: What it is for, in sentences.
        schema: The JSON Schema of its value by itself.
        words: Returns a value as people read it.
        group: The part of a form that has it.
        only_if: It may differ from its default only if all these hold.
        parts: For a mapping with names of its own, the fields in it.
        choices: The values, if there are a few.
        order: Its values from those that deny most to those that deny least, or :data:`MORE`. Empty: they have none.
        measurable: Whether a limit in shadow shows what another value would do.
        columns: The columns of the database that hold it. Empty: one with its name.
        is_beside: Whether a form has it on the line of the field before it.
        form_label: The label in a form whose first line reads as a sentence. Empty: the label.
        typed: How a form takes the value, in sentences.
        example: A value for documentation.
    """

    name: str
    label: str
    help: str
    schema: Schema
    words: Words
    group: str = FIRST
    only_if: tuple[Is, ...] = ()
    parts: tuple[Field, ...] = ()
    choices: Mapping[str, Choice] | None = None
    order: str | tuple[str, ...] = ""
    measurable: bool = True
    columns: tuple[str, ...] = ()
    is_beside: bool = False
    form_label: str = ""
    typed: str = ""
    example: object = None

    @property
    def default(self) -> object:
        """The value of a field that is left out, as in JSON, or :data:`REQUIRED`. A part has an empty one."""
        if self.name == "name":
            return REQUIRED  # in code, a limit without a name is named after its rate
        spec = Limit.__dataclass_fields__.get(self.name)
        if spec is None:
            return {"array": [], "object": {}}.get(self.schema["type"], "")
        if spec.default_factory is not MISSING:
            return {}
        if spec.default is MISSING:
            return REQUIRED
        return list(spec.default) if isinstance(spec.default, tuple) else spec.default

    @property
    def is_nullable(self) -> bool:
        """Whether null is the same as leaving the field out."""
        return self.default is None

    def value_in(self, limit: Record) -> object:
        """Return the value in a record of a limit, or the default."""
        value = limit.get(self.name)
        return self.default if value is None or (value == "" and self.is_nullable) else value

    def in_words(self, limit: Record, money: Money) -> str:
        """Return the value in a record of a limit, or the default, as people read it."""
        return self.words(self.value_in(limit), limit, money)

    def label_in(self, limit: Record) -> str:
        """Return the label of the field in a record of a limit. What a window is depends on the algorithm."""
        is_slot = self.name == "window_seconds" and limit.get("algorithm") == "concurrency"
        return "Slot lifetime" if is_slot else self.label

    def may_be_set(self, limit: Record) -> bool:
        """Return whether the other fields of a limit allow a value other than the default."""
        return all(condition.holds(limit) for condition in self.only_if)


def amount(limit: Record, money: Money) -> str:
    """Return the quota of a record with its period, such as "100 requests per minute"."""
    quota, unit = limit.get("quota", 0), limit.get("unit", "requests")
    if unit == MONEY:
        what = money(quota) if quota else "No money"
    else:
        what = f"{quota:,} {unit_of(limit, quota)}" if quota else f"No {unit_of(limit, 0)}"
    if limit.get("algorithm") == "concurrency":
        return what if unit == MONEY else f"{what} at a time"
    calendar = limit.get("calendar")
    if calendar:
        return f"{what} in total" if calendar == "lifetime" else f"{what} per calendar {calendar}"
    words = duration(limit.get("window_seconds") or 0)
    return f"{what} per {words.removeprefix('1 ') if words.count(' ') == 1 else words}"


def unit_of(limit: Record, number: int) -> str:
    """Return the name of what a limit counts, in words, for a number of it."""
    name = str(limit.get("unit") or "requests").replace("_", " ")
    return name.removesuffix("s") if number == 1 else name


def attribute(name: str) -> str:
    """Return an attribute in words, such as "team of the token" for the label ``label.team``."""
    return f"{name.removeprefix(LABEL_PREFIX)} of the token" if is_label(name) else name


def label_of(path: Sequence[str], limit: Record) -> str:
    """
    Return the label of a field of a limit, or of a part of one.

    Args:
        path: The names on the way to it, such as ``("match", "attributes", "model")``.
    """
    if tuple(path[:2]) == ("match", "attributes") and len(path) > 2:
        return f"Where {attribute(path[2])} is"
    if path[0] == "weights" and len(path) > 1:
        return f"Weight of {path[1].replace('_', ' ')} tokens"
    found = BY_NAME.get(path[0])
    if found is None:
        return path[0].replace("_", " ").capitalize()
    return next((part.label for part in found.parts if part.name in path[1:2]), found.label_in(limit))


def words_of(path: Sequence[str], value: Any, limit: Record, money: Money) -> str:
    """
    Return a value of a field of a limit, or of a part of one, as people read it.

    Args:
        path: As for :func:`label_of`.
        value: None for one that is left out.
        limit: The record of the limit that has the value.
    """
    if tuple(path[:2]) == ("match", "attributes") and len(path) > 2:
        return pattern(value)
    if path[0] == "weights" and len(path) > 1:
        return _weight(FULL_WEIGHT if value is None else value)
    found = BY_NAME.get(path[0])
    if found is None:  # of another version
        return "not set" if value is None else str(value)
    part = next((part for part in found.parts if part.name in path[1:2]), None)
    if part is not None:
        return part.words(value, limit, money)
    return found.in_words({**limit, path[0]: value}, money)


def flat(limit: Record, *, defaults: bool) -> dict[Path, object]:
    """
    Return the values in a record of a limit by their paths, those of attributes and weights one by one.

    Args:
        defaults: Also return the fields that the record leaves out.
    """
    left_out = {field.name: field.value_in(limit) for field in FIELDS} if defaults else {}
    result: dict[Path, object] = {}
    for name, value in {**left_out, **limit}.items():
        parts: dict[Path, Any] = {(name,): value}
        if name in ("match", "weights"):
            parts = {(name, part): one for part, one in value.items()}
        rules = parts.pop(("match", "attributes"), {})
        result |= parts | {("match", "attributes", attribute): rule for attribute, rule in rules.items()}
    return result


def changes_in_words(before: Record, after: Record, money: Money) -> Iterator[tuple[str, str, str]]:
    """
    Yield a label with the words before and after for each field in which two records of a limit differ.

    If the amounts differ, such as 10 requests per minute, they come without a label, in place of their fields.
    """
    old, new = (flat(limit, defaults=True) for limit in (before, after))
    amounts = [amount(limit, money) for limit in (before, after)]
    are_slots = "concurrency" in (before.get("algorithm"), after.get("algorithm"))
    said = IN_THE_AMOUNT[: 2 if are_slots else 4] if amounts[0] != amounts[1] else ()
    if said:
        yield "", amounts[0], amounts[1]
    for path in dict.fromkeys([*old, *new]):
        values = old.get(path), new.get(path)
        if values[0] == values[1] or path[0] in said or not any(value not in EMPTY for value in values):
            continue
        words = [words_of(path, value, limit, money) for value, limit in zip(values, (before, after), strict=True)]
        yield label_of(path, after), *(words if words[0] != words[1] else map(str, values))


def pattern(value: str | Sequence[str] | None) -> str:
    """Return the rule for an attribute in words, such as ``one of "a", "b"``."""
    if value is None:
        return "anything"
    if isinstance(value, str):
        return f'"{value}"'
    return "one of " + ", ".join(f'"{one}"' for one in value)


def _permits(value: int, limit: Record, money: Money) -> str:
    return money(value) if limit.get("unit") == MONEY else f"{value:,} {unit_of(limit, value)}"


def _quota(value: int, limit: Record, money: Money) -> str:
    return _permits(value, limit, money) if value else "0: every request denied"


def _burst(value: int | None, limit: Record, money: Money) -> str:
    if value is not None:
        return _permits(value, limit, money)
    quota = limit.get("quota", 0)
    return f"same as the quota ({money(quota) if limit.get('unit') == MONEY else f'{quota:,}'})"


def _rollover(value: int | None, limit: Record, money: Money) -> str:
    if value is None:
        return "nothing"
    return f"up to {money(value) if limit.get('unit') == MONEY else f'{value:,} unused {unit_of(limit, value)}'}"


def _unit(value: object, _limit: Record, money: Money) -> str:
    if value != MONEY:
        return str(value).replace("_", " ")
    currency = money(0).removeprefix("0.00").strip()
    return f"money ({currency})" if currency else "money"


def _anchor(value: object, limit: Record, _money: Money) -> str:
    calendar, value = limit.get("calendar"), str(value or "")
    if calendar == "day":
        return f"at {value}" if value else "at midnight"
    if calendar == "week" and (value or "1") in "1234567":
        return f"on {WEEKDAYS[int(value or 1) - 1]}"
    if calendar == "month":
        return f"on day {value or 1}"
    month, _, day = (value or "01-01").partition("-")
    if calendar == "year" and month.isdecimal() and day.isdecimal() and 1 <= int(month) <= 12:
        return f"on {MONTHS[int(month) - 1]} {int(day)}"
    return value or "with the calendar"


def _partition(value: Sequence[str], _limit: Record, _money: Money) -> str:
    return " and ".join(["token or project", *map(attribute, value)])


def _any_of(value: Sequence[str], _limit: Record, _money: Money) -> str:
    return " or ".join(value) if value else "any"


def _attributes(value: Mapping[str, str | Sequence[str]] | None, _limit: Record, _money: Money) -> str:
    return " and ".join(f"{attribute(name)} is {pattern(rule)}" for name, rule in (value or {}).items()) or "any"


def _match(value: Record, limit: Record, money: Money) -> str:
    given = [(part.label, part.words(value[part.name], limit, money)) for part in _MATCH if value.get(part.name)]
    return ", ".join(f"{label.lower()} {words}" for label, words in given) or "every request"


def _responses(value: Sequence[str], _limit: Record, _money: Money) -> str:
    return f"{' and '.join(value)} only" if value else "all, charged at once"


def _weight(value: int) -> str:
    return f"{value / FULL_WEIGHT:g}"


def _weights(value: Mapping[str, int], _limit: Record, _money: Money) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_weight(number)}" for name, number in value.items()) or "1 each"


def _unpriced(value: object, limit: Record, money: Money) -> str:
    if isinstance(value, Mapping):
        return f"charged as {value.get(CHARGE_AS, '')}"
    return _chosen("unpriced")(value, limit, money)


def _window(value: int | None, _limit: Record, _money: Money) -> str:
    return "none" if value is None else duration(value)


def _text(value: object, _limit: Record, _money: Money) -> str:
    return str(value)


def _chosen(name: str) -> Words:
    def words(value: str | None, _limit: Record, _money: Money) -> str:
        choices = BY_NAME[name].choices or {}
        if value is None:
            return "none"
        return choices[value].words if value in choices else str(value).replace("_", " ")

    return words


def _one_of(values: Sequence[str]) -> Schema:
    return {"type": "string", "enum": list(values)}


def _list(pattern: str, **rules: object) -> Schema:
    return {"type": "array", "items": {"type": "string", "pattern": pattern}, **rules}


def closed(properties: Mapping[str, object], *required: str) -> Schema:
    """Return the schema of an object that has no other names."""
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    return {**schema, "required": list(required)} if required else schema


def weights_of(classes: Sequence[str]) -> Schema:
    """Return the schema of the weights of some usage classes."""
    return closed({name: {"type": "integer", "minimum": 0, "maximum": MAX_WEIGHT} for name in classes})


_COUNT: Final = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_NUMBER}
_ATTRIBUTE: Final = "^[a-z][a-z0-9._-]{0,63}$"
_PATTERN: Final = {"type": "string", "maxLength": MAX_PATTERN_LENGTH}
_MATCH: Final = (
    Field(
        name="methods",
        label="Methods",
        help="If empty, every method.",
        schema=_list("^[A-Z]{1,16}$", maxItems=MAX_MATCH_RULES),
        words=_any_of,
        typed="Such as POST, PUT.",
    ),
    Field(
        name="path",
        label="Path",
        help="A glob that matches the whole path and begins with / or a wildcard. If empty, every path.",
        schema={**_PATTERN, "pattern": r"^([/*?\[]|$)"},
        words=lambda value, _limit, _money: value or "any",
        is_beside=True,
        typed="Such as /v1/chat/*.",
    ),
    Field(
        name="attributes",
        label="Attributes",
        help="For each name a value, a glob, or a list of values. If empty, every request.",
        schema={
            "type": "object",
            "maxProperties": MAX_MATCH_RULES,
            "propertyNames": {"pattern": _ATTRIBUTE},
            "additionalProperties": {
                "oneOf": [
                    _PATTERN,
                    {"type": "array", "items": _PATTERN, "minItems": 1, "maxItems": MAX_PATTERNS_PER_RULE},
                ]
            },
        },
        words=_attributes,
        typed="One rule on each line, such as model = gpt-* or label.tier = free | trial.",
    ),
)

FIELDS: Final = (
    Field(
        name="name",
        label="Name",
        help="Identifies the limit in its policy, in headers and in usage. A limit that keeps its name keeps usage and "
        "overrides.",
        schema={"type": "string", "pattern": f"^[A-Za-z0-9][A-Za-z0-9._:/-]{{0,{MAX_NAME_LENGTH - 1}}}$"},
        words=_text,
        example="per-minute",
    ),
    Field(
        name="algorithm",
        label="Algorithm",
        help="How requests are counted.",
        schema=_one_of(ALGORITHMS),
        words=_chosen("algorithm"),
        group=HOW,
        choices={
            "fixed_window": Choice(
                "fixed window", "all at each start, so up to twice the quota around then; also by the calendar"
            ),
            "sliding_window": Choice(
                "sliding window", "cheap, never denies a client that keeps the pace, best for most limits"
            ),
            "sliding_log": Choice("sliding log", "exact for each request, for small quotas"),
            "token_bucket": Choice("token bucket", "a steady rate with bursts"),
            "concurrency": Choice("concurrency", "a number of requests at the same time"),
        },
    ),
    Field(
        name="quota",
        label="Quota",
        help="Permits in each window. 0 denies every request.",
        schema={"type": "integer", "minimum": 0, "maximum": MAX_NUMBER},
        words=_quota,
        order=MORE,
        form_label="Allow",
        typed="Such as 1,200, or 500.00 of money.",
        example=100,
    ),
    Field(
        name="window_seconds",
        label="Window",
        help="Required without a calendar. For concurrency, the lifetime of a slot that is not renewed.",
        schema={"type": ["integer", "null"], "minimum": 1, "maximum": MAX_WINDOW_SECONDS},
        words=_window,
        only_if=(Is("calendar", (None,)),),
        form_label="Length",
        typed="Such as 30 seconds, 1 minute, 5m, 1 hour 30 minutes, 2 weeks.",
        example=60,
    ),
    Field(
        name="calendar",
        label="Calendar period",
        help="In place of a length of time, a window of the calendar, with fixed_window only. With lifetime, it never "
        "ends.",
        schema={"type": ["string", "null"], "enum": [*CALENDARS, None]},
        words=_chosen("calendar"),
        only_if=(Is("algorithm", ("fixed_window",)),),
        choices={**{name: Choice(name) for name in ENDING}, "lifetime": Choice("lifetime (never resets)")},
        form_label="Per",
    ),
    Field(
        name="time_zone",
        label="Time zone",
        help="IANA name of the time zone of the calendar, such as Europe/Berlin.",
        schema={"type": "string", "maxLength": MAX_ZONE_LENGTH},
        words=_text,
        group=HOW,
        only_if=(Is("calendar", CALENDARS),),
        typed="If empty, a new budget of money has that of the policy's project, and any other limit UTC.",
    ),
    Field(
        name="anchor",
        label="Period starts",
        help='When a window of the calendar starts: month 1-31, week 1-7 (Monday 1), day "HH:MM", year "MM-DD". If '
        "empty, the first day, Monday, midnight, January 1.",
        schema={"type": ["integer", "string", "null"]},
        words=_anchor,
        group=HOW,
        is_beside=True,
        only_if=(Is("calendar", ANCHORED),),
    ),
    Field(
        name="burst",
        label="Burst",
        help="How much a token_bucket allows at once. If empty, the quota.",
        schema=_COUNT,
        words=_burst,
        group=HOW,
        only_if=(Is("algorithm", ("token_bucket",)),),
        order=MORE,
    ),
    Field(
        name="rollover",
        label="Carried over",
        help="With a calendar other than lifetime, how much unspent at most a window leaves to the next one. If empty, "
        "none.",
        schema=_COUNT,
        words=_rollover,
        group=HOW,
        is_beside=True,
        only_if=(Is("calendar", ENDING),),
        order=MORE,
    ),
    Field(
        name="unit",
        label="Counts",
        help="What is counted: requests, tokens of a language model, micros, or a unit that your callers report.",
        schema={"type": "string", "pattern": f"^[a-z][a-z0-9_-]{{0,{MAX_UNIT_LENGTH - 1}}}$"},
        words=_unit,
        form_label="Unit",
    ),
    Field(
        name="partition_by",
        label="Counted per",
        help="Attributes of a request such as ip or model, or labels of its token such as label.team. Each of their "
        "values has a counter of its own. If empty, each token or project has one.",
        schema=_list(_ATTRIBUTE, maxItems=MAX_PARTITIONS, uniqueItems=True),
        words=_partition,
        form_label="For each",
        example=["ip"],
    ),
    Field(
        name="match",
        label="Applies to",
        help="The requests to which the limit applies. If empty, all.",
        schema=closed({part.name: {**part.schema, "description": part.help} for part in _MATCH}),
        words=_match,
        group=WHICH,
        parts=_MATCH,
        columns=tuple(f"match_{part.name}" for part in _MATCH),
    ),
    Field(
        name="mode",
        label="Mode",
        help="A shadow limit counts and reports, but never denies.",
        schema=_one_of(MODES),
        words=_chosen("mode"),
        choices={
            "enforce": Choice("enforced", "deny requests over the quota"),
            "shadow": Choice("shadow (counted, never denied)", "count and report, but never deny"),
        },
    ),
    Field(
        name="consistency",
        label="Counting",
        help="Leased permits are taken in advance, so that most requests need no call to the store.",
        schema=_one_of(CONSISTENCIES),
        words=_chosen("consistency"),
        group=HOW,
        only_if=(
            Is("algorithm", tuple(name for name in ALGORITHMS if name != "concurrency")),
            Is("rollover", (None,)),
        ),
        choices={
            "strict": Choice(
                "exact (one call to the store per request)", "exact, with one call to the store for each request"
            ),
            "leased": Choice(
                "leased (permits taken in advance)",
                "permits taken in advance, fewer calls, never too many, at most a tenth unused",
            ),
        },
        order=("leased", "strict"),
        measurable=False,
    ),
    Field(
        name="on_store_failure",
        label="If the store is unavailable",
        help="What decides while the store is unavailable.",
        schema=_one_of(STORE_FAILURES),
        words=_chosen("on_store_failure"),
        group=OUTAGE,
        choices={
            "local": Choice("each process enforces its share", "each process enforces its share of the quota"),
            "allow": Choice("every request is allowed", "every request until the store is back"),
            "deny": Choice("every request is denied", "every request until the store is back"),
        },
        order=("deny", "local", "allow"),
        measurable=False,
    ),
    Field(
        name="charge_on",
        label="Charged responses",
        help="Classes or codes of responses that are charged, such as 2xx or 404. If empty, each request is charged at "
        "once.",
        schema=_list("^[1-5](xx|[0-9]{2})$"),
        words=_responses,
        group=HOW,
        is_beside=True,
    ),
    Field(
        name="weights",
        label="Weights of tokens",
        help=f"For a unit of tokens, what a token of each class counts, per mille. If a class is left out, "
        f"{FULL_WEIGHT}.",
        schema=weights_of(TOKEN_UNITS["tokens"]),
        words=_weights,
        group=METERED,
        only_if=(Is("unit", tuple(TOKEN_UNITS)),),
        typed="One class on each line, such as cached_input = 100, which counts a tenth.",
        example={"cached_input": 100},
    ),
    Field(
        name="unpriced",
        label="Model without a price",
        help="For micros, what happens to a request for a model that has no price.",
        schema={"oneOf": [_one_of(UNMETERED), closed({CHARGE_AS: {**_PATTERN, "minLength": 1}}, CHARGE_AS)]},
        words=_unpriced,
        group=METERED,
        only_if=(Is("unit", (MONEY,)),),
        choices={
            "deny": Choice("request denied"),
            "count_only": Choice("allowed and not charged"),
            CHARGE_AS: Choice("charged as another model"),
        },
        columns=("unpriced", "charge_as"),
    ),
    Field(
        name="unmetered",
        label="Request that cannot be metered",
        help="For tokens and micros, what happens to a request that no meter can read.",
        schema=_one_of(UNMETERED),
        words=_chosen("unmetered"),
        group=METERED,
        only_if=(Is("unit", tuple(sorted(METERED_UNITS))),),
        choices={
            "deny": Choice("denied"),
            "count_only": Choice("allowed and not counted"),
        },
    ),
)
BY_NAME: Final = {field.name: field for field in FIELDS}
NULLABLE: Final = tuple(field.name for field in FIELDS if field.is_nullable)
"""Fields that may be null, which is the same as leaving them out."""
