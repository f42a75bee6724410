"""
The format of a credential: ``sg_<kind>_`` + 32 random bytes in base62 + six characters of CRC-32.

The checksum lets any door, and any secret scanner, refuse a mistyped or invented string without a look-up.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KINDS: Final = ("live", "mgmt")
PREFIX_LENGTH: Final = 12
"""How much of a token people may see: the kind and four characters."""

_BODY_LENGTH: Final = 43  # 62**43 > 2**256
_CHECK_LENGTH: Final = 6  # 62**6 > 2**32
_HEADS: Final = tuple(f"sg_{kind}_" for kind in KINDS)
_LENGTH: Final = len(_HEADS[0]) + _BODY_LENGTH + _CHECK_LENGTH
_CHARACTERS: Final = frozenset(ALPHABET)


def mint(kind: str) -> str:
    """
    Return a new secret.

    Args:
        kind: One of :data:`KINDS`.
    Raises:
        ValueError: *kind* is none of them.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: must be one of {', '.join(KINDS)}, not {kind!r}.")
    body = f"sg_{kind}_" + _base62(int.from_bytes(secrets.token_bytes(32)), _BODY_LENGTH)
    return body + _checksum(body)


def is_well_formed(token: object) -> bool:
    """Tell whether *token* could have been minted: kind, length, alphabet and checksum. No I/O."""
    if not isinstance(token, str) or len(token) != _LENGTH or not token.startswith(_HEADS):
        return False
    if not _CHARACTERS.issuperset(token[len(_HEADS[0]) :]):
        return False
    return token[-_CHECK_LENGTH:] == _checksum(token[:-_CHECK_LENGTH])


def digest(token: str) -> str:
    """
    Return the name under which a token is stored: SHA-256, 64 hexadecimal characters.

    A plain hash suffices: the token holds 256 random bits, so there is nothing to guess (ASVS 5.0, 6.5.2).
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
