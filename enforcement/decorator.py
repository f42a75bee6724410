"""
Limits on plain functions: which limits, whom a call counts for, what it costs, and how long it may wait.

Whatever can be wrong with a declaration is found when the function is decorated, not when it is first called.
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
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.plan import Costs, bind_in_code, check_costs

P = ParamSpec("P")
R = TypeVar("R")
CoroutineFunction = Callable[P, Coroutine[Any, Any, R]]
"""What ``async def`` makes; what it returns can be run and made a task of, unlike any other awaitable."""

Declared = str | Limit | Sequence[str | Limit]
"""Limits as people write them: ``"10/minute"``, ``"10/minute; 1000/day"``, a Limit, or several of either."""

FunctionKey = str | Callable[..., object] | None
FunctionCosts = Costs | Callable[..., Costs]


def declared(limits: Declared) -> tuple[Limit, ...]:
    """
    Return limits as values.

    Raises:
        InvalidLimit: A text that is no limit.
        ValueError: None at all, two of one name, or one that asks for attributes, which limits in code cannot have.
        TypeError: Something else than texts and limits.
    """
    several = list(limits) if isinstance(limits, Iterable) and not isinstance(limits, str) else [limits]
    found: list[Limit] = []
    for item in several:
        if not isinstance(item, (str, Limit)):
            raise TypeError(f"limits: must be texts or Limit values, not {item!r}.")
        found += [item] if isinstance(item, Limit) else Limit.parse_many(item)
    bind_in_code(found, "any", Keys())
    return tuple(found)


def has_slots(limits: Sequence[Limit]) -> bool:
    """Tell whether one of them is held while something lasts, and so must be admitted, not hit."""
    return any(limit.algorithm == "concurrency" for limit in limits)


def key_text(value: object) -> str | None:
    """
    Return a key as text; None, which means that the limit does not fall on this call or request, stays None.

    Raises:
        TypeError: Neither a text nor a whole number nor a UUID: two values that look alike might count together.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, UUID) or type(value) is int:
        return str(value)
    raise TypeError(f"key: must be a text, a whole number, a UUID or None, not {type(value).__name__}.")


class Waiting:
    """
    How long a caller still waits for permits.

    Args:
        max_wait: Seconds, from now on, all pauses together; 0: not at all.
    Raises:
        ValueError: Negative, infinite or no number.
    """

    def __init__(self, max_wait: float) -> None:
        number = isinstance(max_wait, (int, float)) and not isinstance(max_wait, bool)
        if not number or not 0 <= max_wait < math.inf:
            raise ValueError(f"max_wait: must be seconds, 0 or more, not {max_wait!r}.")
        self._until = monotonic() + max_wait

    def pause(self, decision: Decision) -> float:
        """Return how many seconds to sleep before asking again. Raises Denied: waiting so long, or at all, is vain."""
        wait_ms = decision.retry_after_ms
        if wait_ms is None or monotonic() + wait_ms / 1_000 > self._until:
            raise Denied(decision)
        return wait_ms / 1_000


class Declaration:
    """
    A declaration on one function.

    Args:
        function: What is decorated; its parameters are what a key in text may name.
        limits: See :data:`Declared`.
        key: Whom a call counts for: a format of the arguments (``"user:{user_id}"``), or a function that gets them and
            returns a text, a whole number, a UUID, or None for no limit; None: all calls of *function* together.
        costs: What a call costs, or a function of its arguments that says so.
        max_wait: Seconds that a call may wait.
    Raises:
        ValueError: Limits, key, costs or max_wait that cannot be used. InvalidLimit is one.
        TypeError: A key that is neither text nor callable.
    """

    def __init__(
        self, function: Callable[..., Any], limits: Declared, key: FunctionKey, costs: FunctionCosts, max_wait: float
    ) -> None:
        self.limits = declared(limits)
        self.holds = has_slots(self.limits)
        Waiting(max_wait)
        if self.holds and max_wait:
            raise ValueError("max_wait: nobody knows when a slot of a concurrency limit becomes free.")
        if self.holds and (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
            raise ValueError("limits: a concurrency limit would be over before the first item of a generator.")
        self.max_wait = max_wait
        self._costs = costs if callable(costs) else check_costs(costs)
        self._key = _key_of(function, key)

    def key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """Return whom a call counts for; None: no limit. Raises TypeError, see :func:`key_text`."""
        return key_text(self._key(*args, **kwargs))

    def costs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Costs:
        """Return what a call costs."""
        return self._costs(*args, **kwargs) if callable(self._costs) else self._costs


def _key_of(function: Callable[..., Any], key: FunctionKey) -> Callable[..., object]:
    """Return a function of a call's arguments that makes its key."""
    if key is None:
        constant = f"{function.__module__}.{function.__qualname__}"
        return lambda *args, **kwargs: constant
    if callable(key):
        return key
    if not isinstance(key, str):
        raise TypeError(f"key: must be a format of the arguments or a function of them, not {key!r}.")
    signature = inspect.signature(function)
    names = _fields(key)
    unknown = sorted(names - set(signature.parameters))
    if unknown:
        raise ValueError(f"key: {unknown[0]!r} is no parameter of {function.__qualname__}.")
    if not names:
        return lambda *args, **kwargs: key.format()

    def made(*args: Any, **kwargs: Any) -> str:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        return key.format_map(call.arguments)

    return made


def _fields(text: str) -> set[str]:
    """Return the names that a format asks for."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(text) if field is not None]
    except ValueError as exc:
        raise ValueError(f"key: {text!r} is no format: {exc}.") from exc
    return {field.partition(".")[0].partition("[")[0] for field in fields}


__all__ = ["Declaration", "Declared", "Waiting", "declared", "has_slots", "key_text"]
