"""
Estimate the tokens of a request before it is sent to a provider.

The estimate is charged when the request is admitted. What the provider reports replaces it later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from enforcement.metering.charges import ChargeTerms
from enforcement.metering.estimated import BYTES_PER_TOKEN as BYTES_PER_TOKEN
from enforcement.metering.estimated import FACTOR, PLAIN, PricedBy, text_tokens
from enforcement.metering.estimated import PER_MILLE as PER_MILLE
from enforcement.metering.estimated import Estimate as Estimate
from enforcement.model.metered import DEFAULT_METERING, DRAIN, USUAL_OUTPUT_CAP, FrozenMapping, Metering

MESSAGE_TOKENS: Final = 16
"""The most tokens that a provider puts around one message, such as those of its role."""
_CLASSES: Final = {"image": "input_image", "audio": "input_audio", "video": "input_video"}


class NoBound(ValueError):
    """
    A request whose tokens have no known upper bound, under a policy that asks for one. The message says why.

    Attributes:
        field: The field of the request that nobody has priced or allowed. Empty if another reason holds.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


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
    part_bound: int | None = None,
    priced_by: PricedBy = PLAIN,
    typical: int | None = None,
    pattern: str = "",
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
        part_bound: The most tokens that its parts have. None: those that *metering* says.
        priced_by: What the price of a bound depends on.
        typical: The tokens of its text, its objects and its tools, if it is no bound. None: by *factor*.
        pattern: The pattern of the price that says *added_tokens*, or the model without a price.
    Raises:
        NoBound: The policy asks for a bound, and the request has parts of unknown size.
    """
    tokens, bound = metering.part_tokens, metering.estimate == "bound"
    present = {kind: count for kind, count in parts.items() if count} if parts else {}
    if bound and part_bound is None and (unknown := sorted(present.keys() - tokens.keys())):
        raise NoBound(without_number(unknown[0]))
    if bound:
        text = max(text_bytes, all_bytes) + messages * MESSAGE_TOKENS + added_tokens
    else:
        text = text_tokens(text_bytes, factor) if typical is None else typical
    others = sum([tokens.get(kind, 0) * count for kind, count in present.items()]) if present else 0
    if bound and part_bound is not None:
        others = part_bound
    if cap is None:
        cap = USUAL_OUTPUT_CAP if metering.default_cap is None else metering.default_cap
    classes: tuple[tuple[str, int], ...] = ()
    if others and not bound:
        classes = tuple([(_CLASSES[it], tokens.get(it, 0) * count) for it, count in present.items() if it in _CLASSES])
    return Estimate(text + others, cap, n, factor, bound, priced_by, classes, added_tokens if bound else 0, pattern)


def without_number(kind: str) -> str:
    """Return why a part of this kind has no bound, as a clause."""
    return f"part_tokens: must have a number for {kind}, because the request has such a part"


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
