"""
Find what a bound has to know of a request: fields that nobody has listed, what its price depends on, and its parts.

Nothing here is done under a policy with typical estimates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Final, NamedTuple, TypedDict

from enforcement.metering.body import CACHE_MARKS
from enforcement.metering.estimate import NoBound, without_number
from enforcement.metering.estimated import PLAIN, PricedBy
from enforcement.metering.formats.fields import fields_of, unlisted
from enforcement.metering.formats.text import as_list, as_object
from enforcement.metering.modalities import DRAWING
from enforcement.metering.pictures import Size, picture_tokens, size_in
from enforcement.metering.rates import HOUR
from enforcement.model.checks import shown


class ReadOptions(TypedDict, total=False):
    """Options of :func:`~enforcement.metering.request.read_request` that depend on the provider."""

    include_usage: bool
    cap_field: str


FieldRates = Mapping[str, int]
"""Ways to fields that the operator of an upstream allows, with what they multiply the price by, per mille."""

NO_FIELDS: Final[FieldRates] = {}
KEPT_CONTEXT: Final = "the request refers to context that the provider keeps, whose tokens have no bound"
MAX_ALLOWED_FIELDS: Final = 100
MAX_FIELD_LENGTH: Final = 200
MAX_FIELD_FACTOR: Final = 1_000
FREE_FIELD: Final = "none"


def field_rates(fields: Mapping[str, object]) -> FieldRates:
    """
    Return the fields that an operator allows, as :func:`demands_of` takes them.

    Args:
        fields: By the way to each field, such as ``metadata.turbo``, or to one of its values, such as
            ``service_tier=scale``: ``"none"`` if it changes no cost, else how many times the cost is at most, from 1 to
            1000 with three decimals.
    Raises:
        ValueError: One of them breaks a rule. The message names it.
    """
    if len(fields) > MAX_ALLOWED_FIELDS:
        raise ValueError(f"must have at most {MAX_ALLOWED_FIELDS} fields, got {len(fields)}.")
    result = {}
    for way, value in fields.items():
        if not (0 < len(way) <= MAX_FIELD_LENGTH and way.isprintable() and "" not in way.partition("=")[0].split(".")):
            raise ValueError(f"must name fields such as 'turbo' or 'reasoning.turbo', got {shown(way)}.")
        result[way] = 1_000 if value == FREE_FIELD else _per_mille(way, value)
    return result


def _per_mille(way: str, value: object) -> int:
    try:
        factor = Decimal(str(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except InvalidOperation:
        factor = None
    if factor is None or not factor.is_finite() or not 1 <= factor <= MAX_FIELD_FACTOR or factor * 1_000 % 1:
        rule = f"'none' or a number from 1 to {MAX_FIELD_FACTOR} with at most three decimals"
        raise ValueError(f"{way} must have {rule}, got {shown(value)}.")
    return int(factor * 1_000)


# Tiers that cost what the usual one does, or less.
_TIERS: Final = frozenset(("", "auto", "default", "standard", "standard_only", "on_demand", "flex", "batch"))
# Models that call other models, or search, by themselves, so that what they read and charge has no bound.
_COMPOUND: Final = re.compile(
    r"(?:^|/)(?:compound|sonar)|search-preview|search-api|deep-research|:online(?:$|:)", re.IGNORECASE
)
# Where a part has its picture, or the address of one.
_PICTURES: Final = frozenset(
    ("url", "image_url", "data", "file_id", "fileUri", "file_uri", "file_url", "file_data", "result")
)
_TYPES: Final = frozenset(("format", "media_type"))
_LONGEST_TYPE: Final = 256
# The types of data that parts of a kind may have. A file may be a picture, which has fewer tokens.
_OF_TYPE: Final = {
    "image": re.compile("image/", re.IGNORECASE),
    "file": re.compile("(?!audio/|video/)", re.IGNORECASE),
}


class Demands(NamedTuple):
    """
    The facts of a request, beside its tokens, on which its bound depends.

    Attributes:
        priced_by: What its price depends on.
        factor: What the fields that the operator has allowed multiply the price by, per mille.
    """

    priced_by: PricedBy
    factor: int


class _Rates:
    """The rates that a request asks for, as they are found."""

    def __init__(self, body: dict[str, object], model: str, allowed: FieldRates) -> None:
        self.body = body
        self.model = model
        self.allowed = allowed
        self.factor = 1_000
        self.modifiers: list[str] = []
        self.needed: list[str] = []
        self.outputs: tuple[str, ...] = _OF_OPENAI
        self.has_outputs = False

    def refuse(self, field: str) -> None:
        """Take the rate that the operator says for a field or its value, or raise NoBound."""
        factor = self.allowed.get(field, self.allowed.get(field.partition("=")[0]))
        if factor is None:
            raise NoBound(
                f"the field {shown(field)[1:-1]} may change its cost, and neither the price of the model nor "
                "allowed_fields of the upstream says by how much",
                field,
            )
        self.factor = max(self.factor, factor)

    def object_in(self, value: dict[str, object], name: str) -> dict[str, object]:
        """Return the object in a field, which may be missing. One of another shape is refused like an unknown field."""
        if value.get(name) is not None and type(value[name]) is not dict:
            self.refuse(name)
        return as_object(value.get(name))

    def modify(self, name: str, value: object, usual: frozenset[str]) -> None:
        """Note what a field multiplies the rates by, unless its value is a usual one."""
        if value is None or (type(value) is str and value.lower() in usual):
            return
        modifier = f"{name}={value.lower()}" if type(value) is str else f"{name}={shown(value)}"
        if type(value) is not str or modifier in self.allowed or name in self.allowed:
            self.refuse(modifier)
        else:
            self.modifiers.append(modifier)

    def produce(self, field: str, kinds: object) -> None:
        """Note what kinds of output a request asks for. Without a word, it may be all that the model has rates for."""
        if kinds is None or kinds == []:
            return
        if not self.has_outputs:  # a field may have two spellings
            self.outputs, self.has_outputs = (), True
        for kind in as_list(kinds) or [kinds]:
            name = kind.lower() if type(kind) is str else kind
            if name in ("image", "audio"):
                self.outputs += (f"output_{name}",)
                self.needed.append(f"output_{name}")
            elif name != "text":
                self.refuse(f"{field}={kind}")


@lru_cache(1_024)
def _is_compound(model: str) -> bool:
    return _COMPOUND.search(model) is not None


def demands_of(
    format: str,
    body: dict[str, object],
    model: str,
    parts: Iterable[str] = (),
    allowed: FieldRates = NO_FIELDS,
    in_head: Iterable[str] = (),
    *,
    has_marks: bool,
) -> Demands:
    """
    Return what a bound has to know of a request.

    Args:
        format: Its format.
        body: The request.
        model: The model that it asks for.
        parts: The kinds of its parts that are no text.
        allowed: The fields that the operator of the upstream allows.
        in_head: The modifiers that its header fields ask for.
        has_marks: Whether it marks what is written to a cache.
    Raises:
        NoBound: A field is not listed, or the model has no bound.
    """
    if _is_compound(model):
        raise NoBound(f"the model {shown(model)} searches or calls other models by itself")
    ways = unlisted(body, fields_of(format, body))
    if not ways and not parts and not in_head and format in _PLAIN and _LOOKED_AT.isdisjoint(body) and not has_marks:
        return _PLAIN[format]  # as most requests are
    rates = _Rates(body, model, allowed)
    for way in ways:
        rates.refuse(way)
    for modifier in in_head:
        name, _, value = modifier.partition("=")
        rates.modify(name, value, frozenset())
    _READ.get(format, _read_bedrock if format.startswith("bedrock") else _read_text)(rates)
    inputs = [name for kind in parts for name in _CLASSES.get(kind, ())]
    if has_marks and _keeps_for_an_hour(body):
        inputs.append(HOUR)
    found = tuple(inputs), rates.outputs, tuple(rates.modifiers), tuple(rates.needed)
    return Demands(PricedBy(*found) if any(found) else PLAIN, rates.factor)


def parts_bound(
    model: str, parts: Iterable[tuple[str, object]], tokens: Mapping[str, int], published: Mapping[str, int]
) -> int:
    """
    Return the most tokens that the parts of a request have.

    Args:
        model: The model that it asks for.
        parts: Each part that is no text, after its kind.
        tokens: The tokens of one part by its kind, as the policy says.
        published: The same as the price of the model says.
    Raises:
        NoBound: A part has none.
    """
    total = 0
    for kind, part in parts:
        if kind in _OF_TYPE and (other := _other_type(part, _OF_TYPE[kind])):
            raise NoBound(f"a part of the kind {kind} has data of the type {shown(other)[1:-1]}")
        known = [said[kind] for said in (tokens, published) if kind in said]
        if kind == "image" and (formula := picture_tokens(model, _size_of(part))) is not None:
            known.append(formula)
        if not known:
            raise NoBound(without_number(kind))
        total += max(known)
    return total


def _other_type(part: object, expected: re.Pattern[str]) -> str:
    """Return the first type of data that a part names and that is not expected, as some providers go by that alone."""
    heads = [text[:_LONGEST_TYPE].lstrip().lower() for text in _strings_named(part, _PICTURES)]
    urls = [re.split("[;,]", head[5:], maxsplit=1)[0] or "none" for head in heads if head.startswith("data:")]
    types = [text[:_LONGEST_TYPE] for text in _strings_named(part, _TYPES) if "/" in text]
    return next((found for found in (*urls, *types) if not expected.match(found)), "")


def _size_of(part: object) -> Size | None:
    """
    Return the size of the only picture in a part. None if it has none, another picture or an address beside it, or its
    header is not known.
    """
    found = list(_strings_named(part, _PICTURES))
    return size_in(found[0]) if len(found) == 1 else None


def _strings_named(value: object, names: frozenset[str]) -> Iterator[str]:
    if type(value) is list:
        for item in value:
            yield from _strings_named(item, names)
    elif type(value) is dict:
        for name, item in value.items():
            if type(item) is str:
                if name in names:
                    yield item
            else:
                yield from _strings_named(item, names)


def _keeps_for_an_hour(body: dict[str, object]) -> bool:
    """Return whether a mark in a request asks for a longer life in the cache than five minutes."""
    waiting: list[object] = [body]
    while waiting:
        item = waiting.pop()
        if type(item) is dict:
            if any(as_object(item.get(name)).get("ttl") not in (None, "5m") for name in CACHE_MARKS):
                return True
            waiting.extend(item.values())
        elif type(item) is list:
            waiting.extend(item)
    return False


# The classes that the tokens of a part may have.
_CLASSES: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("input_image",),
    "audio": ("input_audio", "cached_audio"),
    "video": ("input_video", "input_audio", "cached_audio"),
    "file": ("input_image",),
    "other": ("input_image", "input_audio", "input_video", "cached_audio"),
}


def _read_openai(rates: _Rates) -> None:
    body = rates.body
    rates.modify("service_tier", body.get("service_tier"), _TIERS)
    mode = as_object(body.get("reasoning")).get("mode")
    if mode not in (None, "standard", "default"):
        raise NoBound(f"reasoning.mode {shown(mode)} lets the model read and write more than the request says")
    rates.produce("modalities", body.get("modalities"))
    for extra in (body, rates.object_in(body, "extra_body")):
        for holder in (extra, rates.object_in(extra, "google")):
            if any(holder.get(name) is not None for name in ("cachedContent", "cached_content")):
                raise NoBound(KEPT_CONTEXT)


def _read_anthropic(rates: _Rates) -> None:
    rates.outputs = ()
    rates.modify("service_tier", rates.body.get("service_tier"), _TIERS)
    rates.modify("speed", rates.body.get("speed"), frozenset(("", "standard", "normal")))
    rates.modify("inference_geo", rates.body.get("inference_geo"), frozenset(("", "global")))


def _read_gemini(rates: _Rates) -> None:
    body = rates.body
    for name in ("serviceTier", "service_tier"):
        rates.modify("service_tier", body.get(name), _TIERS)
    for name in ("generationConfig", "generation_config"):
        config = as_object(body.get(name))
        for modalities in ("responseModalities", "response_modalities"):
            rates.produce(modalities, config.get(modalities))
    if not rates.has_outputs and DRAWING.search(rates.model):
        rates.needed.append("output_image")  # as it draws without being asked to


def _read_bedrock(rates: _Rates) -> None:
    _read_anthropic(rates)
    body = rates.body
    rates.modify("service_tier", as_object(body.get("serviceTier")).get("type"), _TIERS)
    rates.modify("latency", as_object(body.get("performanceConfig")).get("latency"), frozenset(("", "standard")))


def _read_text(rates: _Rates) -> None:
    rates.outputs = ()
    rates.modify("service_tier", rates.body.get("service_tier"), _TIERS)


_READ: Final[Mapping[str, Callable[[_Rates], None]]] = {
    "openai-chat": _read_openai,
    "openai-responses": _read_openai,
    "openai-completions": _read_text,
    "openai-embeddings": _read_text,
    "anthropic-messages": _read_anthropic,
    "gemini": _read_gemini,
}

_OF_OPENAI: Final = ("output_image", "output_audio")
# The demands of a request that has none of the fields that are looked at.
_PLAIN: Final[Mapping[str, Demands]] = {
    "openai-chat": Demands(PricedBy(outputs=_OF_OPENAI), 1_000),
    "openai-responses": Demands(PricedBy(outputs=_OF_OPENAI), 1_000),
    "openai-completions": Demands(PLAIN, 1_000),
    "openai-embeddings": Demands(PLAIN, 1_000),
    "anthropic-messages": Demands(PLAIN, 1_000),
}
_LOOKED_AT: Final = frozenset(
    ("service_tier", "reasoning", "modalities", "extra_body", "google", "cachedContent", "cached_content", "speed")
) | {"inference_geo"}
