"""What a doctor says: one line for each thing that was looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from redis.exceptions import NoPermissionError, RedisError, ResponseError

Level = Literal["ok", "unseen", "warning", "problem"]
"""``unseen``: the account may not look at it, or the server does not tell."""

LEVELS: Final[tuple[Level, ...]] = ("ok", "unseen", "warning", "problem")


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that was looked at.

    Attributes:
        name: What; two or three words.
        value: How it is.
        advice: What to do; empty if there is nothing to do.
    """

    name: str
    level: Level
    value: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """Return it as an object of texts."""
        return asdict(self)


Look = Callable[[], Iterable[Finding]]


def looked(name: str, look: Look) -> Iterator[Finding]:
    """Give what a look finds; one that the account may not take, or that fails, is a finding itself."""
    try:
        yield from look()
    except NoPermissionError as exc:
        yield Finding(name, "unseen", f"this account may not look: {_first_line(exc)}")
    except ResponseError as exc:
        yield Finding(name, "unseen", f"the server does not tell: {_first_line(exc)}")
    except (RedisError, OSError) as exc:
        yield Finding(name, "problem", f"{type(exc).__name__}: {_first_line(exc)}", "Is the server overloaded?")


def worst(findings: Iterable[Finding]) -> Level:
    """Return the level of the worst finding; ``ok`` if there is none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def pairs(reply: Any) -> dict[Any, Any]:
    """Return a reply of names and values as a mapping, whichever protocol it came over."""
    return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0][:200]
