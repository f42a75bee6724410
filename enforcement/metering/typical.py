"""
Estimate the input of a request from what is counted in it, by numbers for its model.

The numbers are those of the smallest group that has some. Groups are nested: the vendor of the model, its family, and
its family behind one format. The shipped numbers were fitted by ``python -m tests.fit_estimates``. Those that the
control plane learns move an estimate to half and to double of the shipped one at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcement.metering.formats.text import NO_TOOLS
from enforcement.metering.shipped import OWN_TOOLS, SHIPPED
from enforcement.model.metered import FrozenMapping

if TYPE_CHECKING:
    from enforcement.metering.request import MeteredRequest

SCALE: Final = 1_000_000
"""Numbers are in millionths of a token."""
MAX_CACHED: Final = 4_096
"""Models whose groups are remembered. Clients choose the names, so there may be any number of them."""
LEAST_BYTES: Final = 8
"""At most so many bytes of text are one token, on average of a request."""

PER_MILLE: Final = 1_000
MOST_TIMES: Final = 2
"""How many times the shipped estimate of a request may be what was learned, and how small a part of it."""
OTHERS: Final = "other"
"""The vendor of models whose vendor is not known."""
MOST_USES: Final = 10
"""Uses of a tool of the provider that are expected at most, whatever a request allows."""

_VERSION: Final = re.compile(r"_\d{8}$", re.ASCII)
_NO_PREFIX: Final = re.compile(r"^.*[/.](?=[a-z])")
# The families of each vendor, by the beginning of a model's name. Each has tokens of its own. A model of no family is
# one of its vendor if its name has a number.
_FAMILIES: Final = {
    name: re.compile(pattern)
    for name, pattern in (
        ("openai/gpt-oss", r"gpt-oss"),
        ("openai/gpt-3.5", r"gpt-3|davinci|babbage"),
        ("openai/gpt-4", r"gpt-4(?![o.\d])"),
        ("openai/gpt-4o", r"(?:chatgpt-)?gpt-4|o[134](?:-|$)"),
        ("openai/gpt-5", r"gpt-[5-9]"),
        ("openai/embedding", r"text-embedding-(?:3|ada)"),
        ("anthropic/claude-3", r"claude-(?:v?[123]\b|instant)"),
        ("anthropic/claude-4", r"claude-(?:sonnet|opus|haiku)-4(?!\d|[.-][789](?!\d))"),
        ("anthropic/claude-5", r"claude-[a-z]+-(?:4[.-][789]|[5-9])(?!\d)"),
        ("google/gemini-2", r"gemini-(?:[12]\b|embedding-\d)"),
        ("google/gemini-3", r"gemini-[3-9]\b"),
        ("cohere/command", r"command(?:-[ar]|$)"),
        ("cohere/embed", r"embed-"),
        ("meta/llama-3", r"(?:meta-)?llama-?3|deepseek-r1-distill-llama"),
        ("meta/llama-4", r"(?:meta-)?llama-?4"),
        ("amazon/nova", r"nova-"),
        ("amazon/titan", r"titan-"),
        ("mistral/mistral", r"(?:mistral|ministral|pixtral|magistral|mixtral|codestral|devstral)-"),
        ("deepseek/deepseek", r"deepseek-"),
        ("qwen/qwen", r"qwen"),
        ("zhipu/glm", r"(?:zai-)?glm-"),
        ("voyage/voyage", r"voyage-\d"),
    )
}
_VENDORS: Final = re.compile(r"(?:(gpt)|(claude)|(gemini))-.*\d")
_VENDOR_NAMES: Final = "openai", "anthropic", "google"


class Numbers(NamedTuple):
    """
    The tokens of a request for each thing that is counted in it, in millionths.

    Attributes:
        bytes: For a byte of text.
        objects: For an object of its JSON, such as a message, a part or a schema.
        tools: For a tool that it offers and the client runs.
        any_tools: Once, if there are such tools.
        one: Once.
    """

    bytes: int
    objects: int
    tools: int
    any_tools: int
    one: int

    def tokens(self, text_bytes: int, objects: int, tools: int) -> int:
        """Return the tokens of a request, rounded up once."""
        found = self.bytes * text_bytes + self.objects * objects + self.one
        if tools:
            found += self.tools * tools + self.any_tools
        return max(-(-found // SCALE), -(-text_bytes // LEAST_BYTES))


PLAIN: Final = Numbers(SCALE // 4, 0, 0, 0, 0)
"""The numbers of a model of which nothing is known: one token for four bytes of text."""
NOTHING: Final[FrozenMapping[int]] = FrozenMapping()


@dataclass(frozen=True, slots=True)
class Learned:
    """
    The numbers that the control plane has learned about the input of requests.

    Attributes:
        groups: The numbers of groups of models, by their names.
        tools: The input tokens that one use of a tool of the provider adds, by the kind of tool.
    """

    groups: FrozenMapping[Numbers] = field(default_factory=FrozenMapping)
    tools: FrozenMapping[int] = NOTHING

    def numbers_for(self, model: str, format: str) -> Numbers | None:
        """Return the numbers of the smallest group of a model of which something was learned, or None."""
        return next((self.groups[group] for group in groups_of(model, format) if group in self.groups), None)

    def factor_for(self, model: str, format: str) -> int:
        """
        Return how many tokens of output four bytes that were seen have, per mille, from 1000 to 2000.

        An answer has no names of tools and no schemas, so its text has never fewer tokens than usual.
        """
        numbers = self.numbers_for(model, format) if self.groups else None
        if numbers is None:
            return PER_MILLE
        return min(max(PER_MILLE, numbers.bytes * 4 * PER_MILLE // SCALE), MOST_TIMES * PER_MILLE)


NONE_LEARNED: Final = Learned()


@lru_cache(MAX_CACHED)
def groups_of(model: str, format: str) -> tuple[str, ...]:
    """
    Return the names of the groups of a request for a model, the smallest first.

    A model of no known family is one of its own.
    """
    name = model.lower()
    for end in (_NO_PREFIX.sub("", name), name):
        for family, pattern in _FAMILIES.items():
            if pattern.match(end):
                return f"{family}/{format}", family, family.partition("/")[0]
        matched = _VENDORS.match(end)
        if matched:
            vendor = _VENDOR_NAMES[(matched.lastindex or 1) - 1]
            return f"{vendor}/{name}/{format}", vendor
    return (f"{OTHERS}/{name}/{format}",)


@lru_cache(MAX_CACHED)
def shipped_numbers(model: str, format: str) -> Numbers:
    """Return the shipped numbers for a model."""
    return next((Numbers(*SHIPPED[group]) for group in groups_of(model, format) if group in SHIPPED), PLAIN)


def tool_kind(type: str) -> str:
    """Return the type of a tool of the provider without its version."""
    return _VERSION.sub("", type)


def own_tokens(tools: Mapping[str, int], learned: Mapping[str, int] = NOTHING) -> int:
    """
    Return the input that tools of the provider add to a request.

    Args:
        tools: The uses that the request allows each, by its type. 0: it does not say, and one is expected.
        learned: What was learned of one use of each kind of tool.
    """
    kinds = [(tool_kind(tool), min(uses or 1, MOST_USES)) for tool, uses in tools.items()]
    return sum([(learned[kind] if kind in learned else OWN_TOOLS.get(kind, 0)) * uses for kind, uses in kinds])


def shipped_tokens(asked: MeteredRequest) -> int:
    """Return the input of a request by the shipped numbers, without that of parts that are no text."""
    if asked.shipped < 0:
        has_tools = asked.own_tools is not NO_TOOLS and bool(asked.own_tools)
        if asked.text_bytes or has_tools:
            numbers = shipped_numbers(asked.attributes["model"], asked.format)
            found = numbers.tokens(asked.text_bytes, asked.objects, asked.tools)
            asked.shipped = found + own_tokens(asked.own_tools) if has_tools else found
        else:
            asked.shipped = 0
    return asked.shipped


def typical_tokens(asked: MeteredRequest, learned: Learned) -> int:
    """
    Return the input of a request that is no bound, without that of parts that are no text.

    What was learned moves it to half and to double of what the shipped numbers say, at most.
    """
    shipped = shipped_tokens(asked)
    if not shipped or learned is NONE_LEARNED:
        return shipped
    numbers = learned.numbers_for(asked.attributes["model"], asked.format)
    if numbers is None and not (asked.own_tools and learned.tools):
        return shipped
    numbers = numbers or shipped_numbers(asked.attributes["model"], asked.format)
    found = numbers.tokens(asked.text_bytes, asked.objects, asked.tools)
    if asked.own_tools:
        found += own_tokens(asked.own_tools, learned.tools)
    return min(max(found, -(-shipped // MOST_TIMES)), shipped * MOST_TIMES)
