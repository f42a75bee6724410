"""
Estimate the tokens of a request before it is sent to a provider.

The estimate is charged when the request is admitted. What the provider reports replaces it later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from enforcement.metering.charges import ChargeTerms
from enforcement.model.metered import DEFAULT_METERING, DRAIN, FrozenMapping, Metering

DEFAULT_CAP: Final = 4_096
"""Output tokens of a request that names no cap, under policies that name none either."""
BYTES_PER_TOKEN: Final = 4
PER_MILLE: Final = 1_000
MESSAGE_TOKENS: Final = 16
"""The most tokens that a provider puts around one message, such as those of its role."""
FACTOR: Final = PER_MILLE
"""The factor of a model of which nothing was learned, per mille."""
LEAST_FACTOR: Final = 500
MOST_FACTOR: Final = 2_000


class NoBound(ValueError):
    """A request whose tokens have no known upper bound, under a policy that asks for one. The message says why."""


@dataclass(slots=True)
class Estimate:
    """
    The tokens of a request before it is answered.

    It never changes. The class is not frozen, because creating a frozen instance takes four times as long.

    Attributes:
        input: Tokens of its text and its other parts.
        cap: Output tokens that each choice of the answer may have. It must be sent to the provider.
        n: Choices that the answer has.
        factor: What was learned of the model's tokens, per mille. Text has so many more tokens than usual.
        bound: Whether no number here can be exceeded by a provider that honours *cap*.
    """

    input: int
    cap: int
    n: int = 1
    factor: int = FACTOR
    bound: bool = False

    cached_input: ClassVar[int] = 0
    cache_write: ClassVar[int] = 0
    calls: ClassVar[int] = 0
    other_rates: ClassVar[bool] = False

    @property
    def output(self) -> int:
        """The most output tokens that the answer may have."""
        return self.cap * self.n

    def seen(self, text_bytes: int) -> int:
        """
        Return how many output tokens a part of an answer has, by the length of its text in bytes.

        A token has at least one byte, so a bound takes one for each byte, but not more than the cap allows.
        """
        return min(text_bytes, self.output) if self.bound else text_tokens(text_bytes, self.factor)


def estimate_request(
    metering: Metering,
    *,
    text_bytes: int,
    parts: Mapping[str, int] | None = None,
    cap: int | None = None,
    n: int = 1,
    factor: int = FACTOR,
    messages: int = 0,
    all_bytes: int = 0,
    added_tokens: int = 0,
    keeps_context: bool = False,
    unbounded: str = "",
) -> Estimate:
    """
    Return the estimate of a request.

    Args:
        metering: The rules of its policies, see :func:`strictest`.
        text_bytes: Length of its text in UTF-8.
        parts: How many parts it has that are not text, by kind. A kind without a number of tokens in *metering* counts
            nothing in a typical estimate.
        cap: Output tokens that each choice may have, as the request says. None: the default of the policy.
        n: Choices that it asks for.
        factor: What was learned of the model, per mille, 500 to 2000. A bound does not use it.
        messages: How many messages, parts and tools it has. In a bound each of them has :data:`MESSAGE_TOKENS` beside
            its text, because a request of many empty messages has no text, and costs.
        all_bytes: Bytes of all that a model may read of it: its text, and names, numbers and fields that no meter
            knows. In a bound each of them is a token.
        added_tokens: Tokens that the provider adds to it by itself. Only a bound counts them.
        keeps_context: Whether it refers to text that the provider keeps, such as an earlier answer or a file.
        unbounded: Why the model may read more than that, as a clause. Empty: it does not.
    Raises:
        NoBound: The policy asks for a bound, and the request has parts or context of unknown size.
    """
    tokens, bound = metering.part_tokens, metering.estimate == "bound"
    present = {kind: count for kind, count in parts.items() if count} if parts else {}
    if bound:
        if keeps_context:
            raise NoBound("the request refers to context that the provider keeps, whose tokens have no bound")
        if unbounded:
            raise NoBound(unbounded)
        if unknown := sorted(present.keys() - tokens.keys()):
            raise NoBound(f"part_tokens: must have a number for {unknown[0]}, because the request has such a part")
    if bound:
        text = max(text_bytes, all_bytes) + messages * MESSAGE_TOKENS + added_tokens
    else:
        text = text_tokens(text_bytes, factor)
    others = sum([tokens.get(kind, 0) * count for kind, count in present.items()]) if present else 0
    if cap is None:
        cap = DEFAULT_CAP if metering.default_cap is None else metering.default_cap
    return Estimate(text + others, cap, n, factor, bound)


def text_tokens(text_bytes: int, factor: int = FACTOR) -> int:
    """Return how many tokens a text of this length usually has, rounded up once. *factor* is per mille."""
    return -(-text_bytes * factor // (BYTES_PER_TOKEN * PER_MILLE))


def clamp(estimate: Estimate, terms: ChargeTerms, room: Sequence[int | None], least: int) -> Estimate | None:
    """
    Return an estimate with the greatest lower cap whose costs fit into what all limits have left.

    Args:
        estimate: An estimate that was denied.
        room: The greatest cost that each limit would admit now, in the order of the limits. None for a limit that does
            not deny.
        least: The lowest cap that is worth a request.
    Returns:
        The new estimate. None if not even *least* fits, or the cap is that low already.
    """
    low, high = least, estimate.cap - 1
    if low > high or not _fits(replace(estimate, cap=low), terms, room):
        return None
    # Costs never fall when the cap rises, so the greatest cap that fits is found by halves.
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(replace(estimate, cap=middle), terms, room):
            low = middle
        else:
            high = middle - 1
    return replace(estimate, cap=low)


def strictest(rules: Iterable[Metering]) -> Metering:
    """
    Return the rules for a request to which several policies apply.

    A bound goes before a typical estimate, the lowest default cap before higher ones, the most tokens for each part,
    draining before cancelling, the highest of the least caps, and the longest time until a lost reservation is settled.
    A request without policies has the default rules.
    """
    found = list(rules)
    if len(found) == 1:
        return found[0]
    caps = [rule.default_cap for rule in found if rule.default_cap is not None]
    floors = [rule.clamp_at_least for rule in found if rule.clamp_at_least is not None]
    parts: dict[str, int] = {}
    for rule in found:
        parts.update({kind: max(count, parts.get(kind, 0)) for kind, count in rule.part_tokens.items()})
    return Metering(
        estimate=max((rule.estimate for rule in found), key="bound".__eq__, default=DEFAULT_METERING.estimate),
        default_cap=min(caps, default=None),
        part_tokens=FrozenMapping(parts),
        on_disconnect=max((rule.on_disconnect for rule in found), key=DRAIN.__eq__, default=""),
        clamp_at_least=max(floors, default=None),
        lost_after=max((rule.lost_after for rule in found), default=DEFAULT_METERING.lost_after),
    )


def _fits(estimate: Estimate, terms: ChargeTerms, room: Sequence[int | None]) -> bool:
    costs = terms.costs(estimate)
    return all(cost is None or left is None or cost <= left for cost, left in zip(costs, room, strict=True))
