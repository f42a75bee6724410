"""Say for people why a request is denied."""

from __future__ import annotations

from typing import Final

from enforcement.model.metered import MONEY
from enforcement.model.money import figure
from enforcement.model.sizes import MAX_SLOTS_PER_REQUEST
from enforcement.plan.limit_state import LimitState, seconds

_TITLES: Final = {
    "limited": "Too many requests",
    "cost_exceeds_capacity": "The request costs more than the limit can ever admit",
    "too_many_reservations": "Too many reservations of the project are open",
    "too_many_of_token": "Too many reservations of the token are open",
    "unpriced_model": "The model has no price",
    "unmetered": "The cost of the request cannot be read",
    "unknown_token": "The token is not known",
    "revoked": "The token was revoked",
    "expired": "The token has expired",
    "inactive_project": "The project is not active",
    "suspended": "The access is suspended",
    "token_required": "A token is required",
    "unknown_project": "The project of requests without a token is not known",
    "degraded_denied": "The limit cannot be checked now",
}


def title(reason: str) -> str:
    """Return a few words for the reason of a decision, or "Allowed" for a reason without any."""
    return _TITLES.get(reason, "Allowed")


def sentence(status: int, reason: str, limit: LimitState | None, retry_after_ms: int | None, currency: str = "") -> str:
    """
    Return a sentence or two that say why a request was denied and when to try again.

    Args:
        status: The HTTP status.
        reason: The reason of the decision.
        limit: The limit that decides, or None.
        retry_after_ms: Milliseconds until the same request can pass. None if no wait helps.
        currency: In which a limit on money counts, such as ``USD``. Empty if it is not known.
    """
    wait = "" if retry_after_ms is None else f" Try again in {max(1, seconds(retry_after_ms))} s."
    if status != 429 or limit is None:
        return f"{title(reason)}.{wait}"
    shown, unit = (figure, currency or "units of money") if limit.unit == MONEY else (str, limit.unit)
    if limit.hopeless:
        slots = limit.algorithm == "concurrency"
        most = min(limit.capacity, MAX_SLOTS_PER_REQUEST) if slots else limit.capacity
        together = f", and all limits {MAX_SLOTS_PER_REQUEST} slots together" if slots else ""
        return f"{limit.name} can admit {shown(most)} {unit} at once{together}, but the request costs more."
    if limit.algorithm == "concurrency":
        return f"{limit.name}: {_slots(limit)}.{wait}"
    together = " for all values beyond the project's cap together" if limit.overflow else ""
    of = (
        f" of {shown(limit.quota)}" if limit.remaining <= limit.quota else ""
    )  # more is left if earlier windows left some
    return f"{limit.name} has {shown(limit.remaining)}{of} {unit} left{together}.{wait}"


def _slots(limit: LimitState) -> str:
    if limit.remaining:
        free = "slot is" if limit.remaining == 1 else "slots are"
        return f"{limit.remaining} {free} free, but the request needs more"
    return "its only slot is in use" if limit.quota == 1 else f"all {limit.quota} slots are in use"
