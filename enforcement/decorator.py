"""
Declare which limits apply to the calls of a function, with the key, the costs and the longest wait of a call.

An error in a declaration is raised when the function is decorated, not when it is first called.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from typing import Any, Final, ParamSpec, TypeVar
from uuid import UUID

from enforcement.model.checks import shown
from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.model.sizes import MAX_CODE_KEY_LENGTH
from enforcement.plan.binding import Limits, bind_in_code, bind_pairs
from enforcement.plan.costs import Costs, check_costs, check_units
from enforcement.waiting.queues import checked_wait

MAX_SCOPE_LENGTH: Final = 255
# No colon: the first two colons of a key end its scope and its kind, so that no client can name another counter.
_SCOPE: Final = re.compile(rf"[^:\s]{{1,{MAX_SCOPE_LENGTH}}}")
RULES: Final = "sluicegate_rules"
"""Attribute of a decorated function that holds the groups of limits on it."""

P = ParamSpec("P")
R = TypeVar("R")
CoroutineFunction = Callable[P, Coroutine[Any, Any, R]]
"""A function made by ``async def``. Unlike other awaitables, what it returns can be made a task."""

Declared = str | Limit | Sequence[str | Limit]
"""Limits as users write them: ``"10/minute"``, ``"10/minute; 1000/day"``, a Limit, or a list of either."""

FunctionKey = str | Callable[..., object] | None
FunctionLimits = Declared | Callable[..., Declared | None] | Sequence[tuple[object, FunctionKey]]
"""
Limits of a function: as in :data:`Declared`, a function of its arguments that returns such limits or None for no limit,
or pairs of either and the key that they count by.
"""
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


def declared_costs(limits: Sequence[Limit], costs: Costs) -> Costs:
    """
    Return *costs* unchanged, or raise ValueError if they are not valid for the limits.

    Raises:
        ValueError: They are not valid, or the limits would not count them.
    """
    check_units(limits, check_costs(costs))
    return costs


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


@dataclass(frozen=True, slots=True)
class Call:
    """
    One call of a decorated function.

    Attributes:
        limits: The limits that apply, with their keys if these differ.
        key: The key of all limits. None if they have their own.
        costs: The costs of the call.
        holds: Whether a limit has slots, so that it needs ``admit()`` and not ``hit()``.
    """

    limits: Limits
    key: str | None
    costs: Costs
    holds: bool


class Declaration:
    """
    The limits that are declared on one function.

    Args:
        function: The decorated function. A format in *key* may name its parameters.
        limits: See :data:`FunctionLimits`.
        key: What calls are counted by: a format of the arguments (``"user:{user_id}"``), or a function that takes them
            and returns a string, an integer, a UUID, or None for no limit. None: all calls of *function* together.
        costs: The costs of a call, or a function that takes its arguments and returns the costs.
        max_wait: Seconds that a call may wait for permits or slots.
        scope: Name of the counters. None: that of *function*, and the number of this declaration if another one on
            *function* would have the same counters.
    Raises:
        ValueError: An argument breaks a rule. InvalidLimit is a ValueError.
        TypeError: *key* is neither a string nor callable.
    """

    def __init__(
        self,
        function: Callable[..., object],
        limits: FunctionLimits,
        key: FunctionKey,
        costs: FunctionCosts,
        max_wait: float,
        scope: str | None = None,
    ) -> None:
        self.max_wait = checked_wait(max_wait)
        self._returns_early = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        name, earlier = None if scope is None else check_scope(scope), getattr(function, RULES, ())
        groups = [_Group(function, some, own, name) for some, own in declared_pairs(limits, key)]
        self._groups = tuple(group.beside(earlier) for group in groups)
        self.rules = (*earlier, *self._groups)
        self._check(known_limits([group.limits for group in self._groups], costs, later=callable(costs)))
        self._costs = costs

    def call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call | None:
        """
        Return a new :class:`Call` with the limits, key and costs of a call, or None if no limit applies.

        Raises:
            TypeError: As :func:`key_text` does.
            ValueError: The limits that were chosen for this call break a rule.
        """
        pairs = [pair for group in self._groups if (pair := group.of(args, kwargs)) is not None]
        if not pairs:
            return None
        costs = self._costs(*args, **kwargs) if callable(self._costs) else self._costs
        holds = self._check([limit for limits, _ in pairs for limit in limits])
        return Call(pairs[0][0], pairs[0][1], costs, holds) if len(pairs) == 1 else Call(pairs, None, costs, holds)

    def _check(self, limits: Sequence[Limit]) -> bool:
        """Return whether one of the limits has slots. Raises ValueError if the function forbids that."""
        if not has_slots(limits):
            return False
        if self._returns_early:
            raise ValueError(
                "limits: must not be concurrency limits on a generator, which returns before its first item."
            )
        return True


def check_declared(limits: FunctionLimits, key: FunctionKey) -> None:
    """
    Raise TypeError or ValueError for limits that a function must not be decorated with. Raises as :class:`Declaration`
    does.
    """
    if callable(limits) and key is None:
        # It may be the decorated function itself, if the decorator was written without its arguments.
        raise TypeError(f"limits: must be strings or Limit values, got {limits!r}. A function needs a key, too.")
    if not (callable(limits) or _are_pairs(limits)):
        declared(limits)  # type: ignore[arg-type]


class _Group:
    """
    The limits of one key.

    Attributes:
        limits: None if a function of the arguments chooses them.
        name: What the keys begin with.
    """

    def __init__(self, function: Callable[..., Any], limits: Any, key: FunctionKey, scope: str | None) -> None:
        self.limits = None if callable(limits) else declared(limits)
        self.name = scope or f"{function.__module__}.{function.__qualname__}"[:MAX_SCOPE_LENGTH]
        self._own_name = scope is None
        self._choose = limits
        self._key = None if key is None else _key_of(function, key)

    def beside(self, earlier: Iterable[_Group]) -> _Group:
        """Return this group, after giving it a name of its own among the earlier ones of its function."""
        count = sum(other._own_name and may_clash(self.limits, other.limits) for other in earlier)
        if self._own_name and count:
            self.name = f"{self.name}#{count + 1}"
        return self

    def of(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> tuple[tuple[Limit, ...], str] | None:
        """Return the limits of a call and their key as a pair, or None if none applies."""
        limits = chosen(self._choose(*args, **kwargs)) if self.limits is None else self.limits
        if limits is None or self._key is None:
            return None if limits is None else (limits, self.name)
        key = key_text(self._key(*args, **kwargs))
        if key == "":
            raise ValueError(f"key: must be a string of 1 to {MAX_CODE_KEY_LENGTH} characters, got 0.")
        return None if key is None else (limits, f"{self.name}:{key}")


def may_clash(some: Sequence[Limit] | None, others: Sequence[Limit] | None) -> bool:
    """Return whether two groups of limits may have one name. None: they are chosen for each call."""
    return some is None or others is None or not {it.name for it in some}.isdisjoint(it.name for it in others)


def check_scope(scope: str) -> str:
    """Return *scope*, or raise ValueError if it cannot name the counters of a limit in code."""
    if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
        raise ValueError(f"scope: must be 1 to 255 characters without spaces or colons, got {scope!r}.")
    return scope


def declared_pairs(limits: Any, key: Any) -> Sequence[tuple[Any, Any]]:
    """
    Return limits as pairs of limits and their key, which may be one pair.

    Args:
        key: The key of all limits. None if *limits* are pairs.
    Raises:
        ValueError: A key is given beside pairs, or only some of *limits* are pairs.
    """
    if not _are_pairs(limits):
        return ((limits, key),)
    if key is not None:
        raise ValueError("key: must be None, because the pairs have their own keys.")
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in limits):
        raise ValueError(f"limits: must all be pairs of limits and a key, got {shown(limits)}.")
    return limits  # type: ignore[no-any-return]


def known_limits(groups: Sequence[tuple[Limit, ...] | None], costs: Any, *, later: bool) -> list[Limit]:
    """
    Return the limits of all groups of one declaration, without those that are chosen for each call.

    Args:
        groups: The limits of each key. None if they are chosen for each call.
        later: Whether the costs are found for each call, so that they are not known yet.
    Raises:
        ValueError: Two limits have one name, or the costs are not valid, or the limits would not count them.
    """
    known = [group for group in groups if group is not None]
    bind_pairs(tuple((group, "any") for group in known), Keys())
    limits = [limit for group in known for limit in group]
    if not later:
        _ = declared_costs(limits, costs) if len(known) == len(groups) else check_costs(costs)
    return limits


def _are_pairs(limits: object) -> bool:
    return isinstance(limits, (list, tuple)) and any(isinstance(item, tuple) for item in limits)


def chosen(limits: Declared | None) -> tuple[Limit, ...] | None:
    """
    Return limits that were chosen for one call or request as a tuple of Limit values, or None for None.

    Raises:
        ValueError, TypeError: As :func:`declared` does.
    """
    if limits is None:
        return None
    if isinstance(limits, (str, Limit)):
        return _read(limits)
    if not isinstance(limits, Iterable):
        raise TypeError(f"limits: must be strings or Limit values, got {limits!r}.")
    return _read(tuple(limits))


# The same limits must be the same objects, because a limiter caches their plans by identity.
@lru_cache(maxsize=1_024)
def _read(limits: str | Limit | tuple[str | Limit, ...]) -> tuple[Limit, ...]:
    return declared(limits)


class _KeyFormat(Formatter):
    """Refuses None, which would count all callers as one, and objects whose text is their place in memory."""

    def get_field(self, field_name: str, args: Sequence[object], kwargs: Mapping[str, object]) -> Any:
        result = super().get_field(field_name, args, kwargs)
        if result[0] is None:
            raise ValueError(
                f"key: {field_name} must not be None. If no limit applies to such calls, use a function that returns "
                "None for them."
            )
        kind: Any = type(result[0])
        if kind.__repr__ is object.__repr__ and (kind.__str__, kind.__format__) == (object.__str__, object.__format__):
            # Each object would have a counter of its own.
            raise TypeError(f"key: {field_name} must have a text; name a field of {kind.__name__}, such as its id.")
        return result


_KEY_FORMAT: Final = _KeyFormat()


def _key_of(function: Callable[..., object], key: FunctionKey) -> Callable[..., object]:
    """Return a function that takes the arguments of a call and returns its key, which is not None."""
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
        if key in signature.parameters:  # all calls would count together
            raise ValueError(f"key: must be '{{{key}}}' to count by the parameter, got {key!r}.")
        return lambda *args, **kwargs: key.format()

    def made(*args: object, **kwargs: object) -> str:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        return _KEY_FORMAT.vformat(key, (), call.arguments)

    return made


def _fields(text: str) -> set[str]:
    """Return the names of the parameters that a format string contains."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(text) if field is not None]
    except ValueError as exc:
        raise ValueError(f"key: must be a format, got {text!r}: {exc}.") from exc
    return {field.partition(".")[0].partition("[")[0] for field in fields}
