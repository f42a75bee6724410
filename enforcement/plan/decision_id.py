"""
Seal the facts of a decision into an id, and read them back.

An id is encrypted and proven by a MAC, so it says nothing to a client, and nobody can make one without the key.
The page "Decision ids" (``templates/docs/decision-ids.md``) describes the format for other languages.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Final

from enforcement.model.checks import check_secret, shown

PREFIX: Final = "dec_"
"""Begins every id of this format. Another format will have another prefix."""
MAX_ID_LENGTH: Final = 200

# Codes are only ever added at the end, because an id may be read by another version.
REASONS: Final = (
    "ok",
    "limited",
    "cost_exceeds_capacity",
    "unknown_token",
    "revoked",
    "expired",
    "inactive_project",
    "degraded_denied",
    "token_required",
    "unknown_project",
    "too_many_reservations",
    "unpriced_model",
    "unmetered",
    "suspended",
    "too_many_of_token",
)
SOURCES: Final = ("store", "lease", "denial_cache", "fallback", "documents")
_OTHER: Final = 255

LAST_MS: Final = 253_402_300_799_999
"""The last millisecond that an id can carry, in the year 9999, which is as far as dates go."""
_TAG_BYTES: Final = 12
_INSTANCE_BYTES: Final = 18
_LIMIT_BYTES: Final = 40
_MARK_BYTES: Final = 4
_CUT: Final = "~"
# Both patterns are compiled on first use. That takes longer than to import most modules, and few processes need it.
_FORM: Final = rf"{PREFIX}[A-Za-z0-9_-]{{24,{MAX_ID_LENGTH - len(PREFIX)}}}"

# Token ids of the control plane are 128 bits in Crockford's alphabet, which are packed into 16 bytes.
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_PACKED: Final = rf"tok_[0-7][{_ALPHABET}]{{25}}"
_IS_PACKED: Final = 255


class InvalidDecisionId(ValueError):
    """The string is not an id that was made with this key."""


@dataclass(frozen=True, slots=True)
class DecisionFacts:
    """
    The fields of a decision id.

    Attributes:
        at_ms: Time of the decision by the store's clock, milliseconds since the epoch.
        serial: Tells decisions of one instance and millisecond apart, 0 to 65535.
        reason: The reason of the decision.
        source: Where the decision was made.
        revision: The published revision. 0 for limits in code.
        instance: The name of the instance. A long one is cut at its beginning, and then begins with ``~``.
        token: The token's id. Empty for limits in code, for an unknown token and for a request without one.
        project_mark: What :func:`mark_of` returns for the project's id.
        limit: ``policy/limit``, or the name of a limit in code, cut as *instance* is. Empty if no limit decided.
    """

    at_ms: int
    serial: int
    reason: str
    source: str
    revision: int
    instance: str
    token: str
    project_mark: str
    limit: str


class DecisionKey:
    """
    A key that seals and opens ids.

    Args:
        secret: Any string of 16 to 256 characters. Enforcers of one fleet have the same one.
    Raises:
        ValueError: The secret is too short or too long.
    """

    def __init__(self, secret: str) -> None:
        check_secret("decision_key", secret)
        self.secret = secret
        whole = secret.encode("utf-8", "surrogatepass")
        self._proving = hmac.digest(whole, b"sluicegate decision id: proof", "sha256")
        self._hiding = hmac.digest(whole, b"sluicegate decision id: hiding", "sha256")

    def seal(self, facts: DecisionFacts) -> str:
        """Return the id that carries these facts."""
        plain = _packed(facts)
        tag = self._tag(plain)
        return PREFIX + _encoded(tag + self._hidden(tag, plain))

    def open(self, text: object) -> DecisionFacts:
        """
        Return the facts in an id.

        Raises:
            InvalidDecisionId: It is no id, was cut or altered, or was made with another key.
        """
        if not isinstance(text, str) or not re.fullmatch(_FORM, text, re.ASCII):
            raise InvalidDecisionId(
                f"decision: must be {PREFIX!r} and 24 to {MAX_ID_LENGTH - len(PREFIX)} characters of base64url, "
                f"got {shown(text)}."
            )
        sealed = _decoded(text.removeprefix(PREFIX))
        tag = sealed[:_TAG_BYTES]
        plain = self._hidden(tag, sealed[_TAG_BYTES:])
        if _encoded(sealed) != text.removeprefix(PREFIX) or not hmac.compare_digest(tag, self._tag(plain)):
            raise InvalidDecisionId("decision: must be a whole id made with this key; it was cut, altered or forged.")
        return _FactsReader(plain).facts()

    def _tag(self, plain: bytes) -> bytes:
        return hmac.digest(self._proving, plain, "sha256")[:_TAG_BYTES]

    def _hidden(self, tag: bytes, data: bytes) -> bytes:
        """Return *data* combined with the key stream of a tag, which encrypts and decrypts it."""
        blocks = -(-len(data) // 32)
        stream = b"".join(hmac.digest(self._hiding, tag + bytes((i,)), "sha256") for i in range(blocks))[: len(data)]
        return (int.from_bytes(data) ^ int.from_bytes(stream)).to_bytes(len(data))


def mark_of(project: str) -> str:
    """Return 8 hexadecimal characters by which a project's id is found among others. Empty for no project."""
    return hashlib.sha256(project.encode()).hexdigest()[: 2 * _MARK_BYTES] if project else ""


def _packed(facts: DecisionFacts) -> bytes:
    return b"".join(
        (
            facts.at_ms.to_bytes(6),
            facts.serial.to_bytes(2),
            bytes((_code(facts.reason, REASONS), _code(facts.source, SOURCES))),
            _number(facts.revision),
            _counted(facts.instance, _INSTANCE_BYTES),
            _packed_token(facts.token),
            bytes.fromhex(facts.project_mark or "00" * _MARK_BYTES),
            _tail(facts.limit, _LIMIT_BYTES),
        )
    )


def _number(value: int) -> bytes:
    size = (value.bit_length() + 7) // 8
    return bytes((size,)) + value.to_bytes(size)


def _code(word: str, words: tuple[str, ...]) -> int:
    return words.index(word) if word in words else _OTHER


def _packed_token(token: str) -> bytes:
    if not re.fullmatch(_PACKED, token, re.ASCII):
        return _counted(token, _INSTANCE_BYTES)
    number = 0
    for digit in token.removeprefix("tok_"):
        number = number * 32 + _ALPHABET.index(digit)
    return bytes((_IS_PACKED,)) + number.to_bytes(16)


def _unpacked_token(data: bytes) -> str:
    number, digits = int.from_bytes(data), []
    for _ in range(26):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return f"tok_{''.join(reversed(digits))}"


def _counted(text: str, most: int) -> bytes:
    data = _tail(text, most)
    return bytes((len(data),)) + data


def _tail(text: str, most: int) -> bytes:
    """Return the end of a string in UTF-8, which has a mark in front if it was cut."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return data
    return (_CUT + data[1 - most :].decode("utf-8", "ignore")).encode()


class _FactsReader:
    """Reads the packed facts, whose MAC was checked."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def facts(self) -> DecisionFacts:
        at_ms, serial = self._number(6), self._number(2)
        reason, source = self._word(REASONS), self._word(SOURCES)
        revision = self._number(self._number(1))
        instance = self._take(self._number(1)).decode()
        size = self._number(1)
        token = _unpacked_token(self._take(16)) if size == _IS_PACKED else self._take(size).decode()
        mark = self._take(_MARK_BYTES)
        limit = self._data[self._at :].decode()
        return DecisionFacts(
            at_ms, serial, reason, source, revision, instance, token, mark.hex() if any(mark) else "", limit
        )

    def _take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size))

    def _word(self, words: tuple[str, ...]) -> str:
        code = self._number(1)
        return words[code] if code < len(words) else "other"


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return b""  # its length is not that of any bytes, so its MAC is wrong
