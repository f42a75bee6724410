"""The findings of the doctor, and how a failed check becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from redis.exceptions import NoPermissionError, RedisError, ResponseError

Level = Literal["ok", "unseen", "warning", "problem"]
"""``unseen`` is for what the account is not permitted to read, or the server does not report."""

LEVELS: Final[tuple[Level, ...]] = ("ok", "unseen", "warning", "problem")


@dataclass(frozen=True, slots=True)
class Finding:
    """
    The result of one check.

    Attributes:
        name: Subject of the check, one to three words.
        value: What was found.
        advice: What to do. Empty if there is nothing to do.
    """

    name: str
    level: Level
    value: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the finding as a new dictionary of strings."""
        return asdict(self)


Check = Callable[[], Iterable[Finding]]


def checked(name: str, check: Check) -> Iterator[Finding]:
    """Yield the findings of a check, or one finding that it is not permitted or has failed."""
    try:
        yield from check()
    except NoPermissionError as exc:
        yield Finding(name, "unseen", f"this account is not permitted to read it: {_first_line(exc)}")
    except ResponseError as exc:
        yield Finding(name, "unseen", f"the server does not report it: {_first_line(exc)}")
    except (RedisError, OSError) as exc:
        yield Finding(name, "problem", f"{type(exc).__name__}: {_first_line(exc)}", "Is the server overloaded?")


def worst(findings: Iterable[Finding]) -> Level:
    """Return the level of the worst finding, or ``ok`` without findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def pairs(reply: Any) -> dict[Any, Any]:
    """Return a reply of names and values as a new dictionary, from RESP2 and RESP3 alike."""
    return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0][:200]
