"""
Make and check credentials of the form ``sg_<kind>_`` + 32 random bytes in base62 + six characters of CRC-32.

With the checksum a proxy, or a secret scanner, refuses a mistyped or invented string without a look-up.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KINDS: Final = ("live", "mgmt")
PREFIX_LENGTH: Final = 12
"""Characters of a token that people may see, which are the kind and four more."""
END_LENGTH: Final = 4
"""
Characters at the end of a token that people may see, too.

They are of the checksum. Whoever knows both ends still has to guess more than 200 of the 256 bits.
"""

_BODY_LENGTH: Final = 43  # 62**43 > 2**256
_CHECK_LENGTH: Final = 6  # 62**6 > 2**32
SECRET_HEADS: Final = tuple(f"sg_{kind}_" for kind in KINDS)
"""The ways in which a credential begins."""
_LENGTH: Final = len(SECRET_HEADS[0]) + _BODY_LENGTH + _CHECK_LENGTH
_CHARACTERS: Final = frozenset(ALPHABET)
_SLUG: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Anonymous:
    """
    A request without a token, in the place of the token.

    The global policy and the anonymous policy of the project apply to it. If the project has no anonymous policy, the
    request is refused.

    >>> limiter.check(Anonymous("website"), attributes={"ip": "203.0.113.7"})

    Attributes:
        project: Slug of the project that the request counts for.
    Raises:
        ValueError: *project* cannot be the slug of a project.
    """

    project: str

    def __post_init__(self) -> None:
        if not isinstance(self.project, str) or not _SLUG.fullmatch(self.project):
            rule = "must be 1 to 63 lower-case letters, digits and hyphens, starting with a letter or digit"
            raise ValueError(f"project: {rule}, got {self.project!r}.")


def mint(kind: str) -> str:
    """
    Return a new random secret for a credential of this kind.

    Args:
        kind: One of :data:`KINDS`.
    Raises:
        ValueError: *kind* is something else.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: must be one of {', '.join(KINDS)}, got {kind!r}.")
    body = f"sg_{kind}_" + _base62(int.from_bytes(secrets.token_bytes(32)), _BODY_LENGTH)
    return body + _checksum(body)


def is_well_formed(token: object) -> bool:
    """Return whether *token* has the format of a credential. Its kind, length, alphabet and checksum are checked."""
    if not isinstance(token, str) or len(token) != _LENGTH or not token.startswith(SECRET_HEADS):
        return False
    if not _CHARACTERS.issuperset(token[len(SECRET_HEADS[0]) :]):
        return False
    return token[-_CHECK_LENGTH:] == _checksum(token[:-_CHECK_LENGTH])


def digest(token: str) -> str:
    """
    Return the SHA-256 of a token in 64 hexadecimal characters. The store and SQL know the token only by it.

    A plain hash is enough, because a token has 256 random bits that nobody can guess (ASVS 5.0, 6.5.2).
    """
    return hashlib.sha256(token.encode()).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_LENGTH)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, remainder = divmod(number, 62)
        digits.append(ALPHABET[remainder])
    return "".join(reversed(digits))
