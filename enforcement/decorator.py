"""
Declare which limits apply to the calls of a function, with the key, the costs and the longest wait of a call.

An error in a declaration is raised when the function is decorated, not when it is first called.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from string import Formatter
from time import monotonic
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.plan.binding import Costs, bind_in_code, check_costs
from enforcement.plan.decision import Decision, Denied

P = ParamSpec("P")
R = TypeVar("R")
CoroutineFunction = Callable[P, Coroutine[Any, Any, R]]
"""A function made by ``async def``. Unlike other awaitables, what it returns can be made a task."""

Declared = str | Limit | Sequence[str | Limit]
"""Limits as users write them: ``"10/minute"``, ``"10/minute; 1000/day"``, a Limit, or a list of either."""

FunctionKey = str | Callable[..., object] | None
FunctionCosts = Costs | Callable[..., Costs]


def declared(limits: Declared) -> tuple[Limit, ...]:
    """
    Return limits, some of which may be strings such as ``"10/minute"``, as a tuple of Limit values.

    Raises:
        InvalidLimit: A string is not a limit.
        ValueError: There is no limit, two have one name, or one needs attributes, which limits in code do not have.
        TypeError: Something is neither a string nor a Limit.
    """
    several = list(limits) if isinstance(limits, Iterable) and not isinstance(limits, str) else [limits]
    found: list[Limit] = []
    for item in several:
        if not isinstance(item, (str, Limit)):
            raise TypeError(f"limits: must be strings or Limit values, got {item!r}.")
        found += [item] if isinstance(item, Limit) else Limit.parse_many(item)
    bind_in_code(found, "any", Keys())
    return tuple(found)


def has_slots(limits: Sequence[Limit]) -> bool:
    """Return whether one of the limits has slots, so that it needs ``admit()`` and not ``hit()``."""
    return any(limit.algorithm == "concurrency" for limit in limits)


def key_text(value: object) -> str | None:
    """
    Return a key as a string, or None for None, which means that no limit applies to this call or request.

    Raises:
        TypeError: The key is not a string, an integer or a UUID. Other values could be counted together.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, UUID) or type(value) is int:
        return str(value)
    raise TypeError(f"key: must be a string, an integer, a UUID or None, got {type(value).__name__}.")


class Waiting:
    """
    The time that a caller may still wait for permits.

    Args:
        max_wait: Seconds from now for all pauses together. 0: do not wait.
    Raises:
        ValueError: *max_wait* is not a finite number, or is negative.
    """

    def __init__(self, max_wait: float) -> None:
        number = isinstance(max_wait, (int, float)) and not isinstance(max_wait, bool)
        if not number or not 0 <= max_wait < math.inf:
            raise ValueError(f"max_wait: must be seconds, 0 or more, got {max_wait!r}.")
        self._until = monotonic() + max_wait

    def pause(self, decision: Decision) -> float:
        """
        Return how many seconds to sleep before the next try, or raise Denied if no pause is short enough or helps.
        """
        wait_ms = decision.retry_after_ms
        if wait_ms is None or monotonic() + wait_ms / 1_000 > self._until:
            raise Denied(decision)
        return wait_ms / 1_000


class Declaration:
    """
    The limits that are declared on one function.

    Args:
        function: The decorated function. A format in *key* may name its parameters.
        limits: See :data:`Declared`.
        key: What calls are counted by: a format of the arguments (``"user:{user_id}"``), or a function that takes them
            and returns a string, an integer, a UUID, or None for no limit. None: all calls of *function* together.
        costs: The costs of a call, or a function that takes its arguments and returns the costs.
        max_wait: Seconds that a call may wait for permits.
    Raises:
        ValueError: An argument breaks a rule. InvalidLimit is a ValueError.
        TypeError: *key* is neither a string nor callable.
    """

    def __init__(
        self, function: Callable[..., Any], limits: Declared, key: FunctionKey, costs: FunctionCosts, max_wait: float
    ) -> None:
        self.limits = declared(limits)
        self.holds = has_slots(self.limits)
        Waiting(max_wait)
        if self.holds and max_wait:
            raise ValueError("max_wait: must be 0 with a concurrency limit, whose slots become free at unknown times.")
        if self.holds and (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
            raise ValueError(
                "limits: must not be concurrency limits on a generator, which returns before its first item."
            )
        self.max_wait = max_wait
        self._costs = costs if callable(costs) else check_costs(costs)
        self._key = _key_of(function, key)

    def key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """
        Return the key of a call as a string, or None if no limit applies. Raises TypeError as :func:`key_text` does.
        """
        return key_text(self._key(*args, **kwargs))

    def costs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Costs:
        """Return the costs of a call."""
        return self._costs(*args, **kwargs) if callable(self._costs) else self._costs


def _key_of(function: Callable[..., Any], key: FunctionKey) -> Callable[..., object]:
    """Return a function that takes the arguments of a call and returns its key."""
    if key is None:
        constant = f"{function.__module__}.{function.__qualname__}"
        return lambda *args, **kwargs: constant
    if callable(key):
        return key
    if not isinstance(key, str):
        raise TypeError(f"key: must be a format of the arguments or a function of them, got {key!r}.")
    signature = inspect.signature(function)
    names = _fields(key)
    unknown = sorted(names - set(signature.parameters))
    if unknown:
        raise ValueError(f"key: must name parameters of {function.__qualname__}, got {unknown[0]!r}.")
    if not names:
        return lambda *args, **kwargs: key.format()

    def made(*args: Any, **kwargs: Any) -> str:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        return key.format_map(call.arguments)

    return made


def _fields(text: str) -> set[str]:
    """Return the names of the parameters that a format string contains."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(text) if field is not None]
    except ValueError as exc:
        raise ValueError(f"key: must be a format, got {text!r}: {exc}.") from exc
    return {field.partition(".")[0].partition("[")[0] for field in fields}


__all__ = ["Declaration", "Declared", "Waiting", "declared", "has_slots", "key_text"]
