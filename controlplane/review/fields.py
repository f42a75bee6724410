"""What a change does to fields that are no limits, in words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.preview.judging import Unknown
from controlplane.review.effects import CHANGED, FELT
from enforcement.model.metered import DEFAULT_METERING, InvalidMetering, Metering

METERING = Unknown(
    "metered requests", "What requests cost in tokens or money is not recorded before a limit denies them."
)
_RULES = {
    "estimate": ("estimate of the input", {"typical": "typical", "bound": "bound: what has no bound is denied"}),
    "default_cap": ("default cap", {None: "the usual one"}),
    "part_tokens": ("tokens of other parts", {}),
    "on_disconnect": (
        "if the client leaves",
        {"free": "the call is cancelled", "drain": "the answer is read to its end"},
    ),
    "clamp_at_least": ("caps are lowered", {None: "never: the request is denied"}),
    "lost_after": ("lost requests are settled as their estimates", {}),
}


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field before and after a change, beside the changes of limits, whose attributes it has."""

    name: str
    was: str
    becomes: str
    effect: str
    note: str = ""
    before: None = None
    after: None = None
    can_start_in_shadow: bool = False

    @property
    def is_felt(self) -> bool:
        return self.effect in FELT


def metering_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[FieldChange]:
    """Yield what becomes of each rule for metered requests, from two records of a policy."""
    old, new = (_rules(record.get("metering", {})) for record in (before, after))
    for name, (title, texts) in _RULES.items():
        was, becomes = getattr(old, name), getattr(new, name)
        if was != becomes:
            yield FieldChange(title, _words(name, was, texts), _words(name, becomes, texts), CHANGED)


def _rules(metering: Mapping[str, Any]) -> Metering:
    try:
        return Metering.from_json(metering)
    except InvalidMetering:  # another program has written to the table
        return DEFAULT_METERING


def _words(name: str, value: Any, texts: Mapping[Any, str]) -> str:
    if name == "part_tokens":
        return ", ".join(f"{part} {number:,}" for part, number in sorted(value.items())) or "none"
    if name == "lost_after":
        return f"after {value:,} seconds"
    if value in texts:
        return texts[value]
    return f"to {value:,} output tokens" if name == "clamp_at_least" else f"{value:,} output tokens"
