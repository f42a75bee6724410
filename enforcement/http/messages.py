"""
HTTP, for all integrations.

It finds the token and the attributes of a request, and makes responses to denials. There is no I/O, and no framework is
imported. Header names have the usual capitals; an integration that needs them in lower case converts them itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from enforcement.http.addresses import network_of
from enforcement.http.families import families_in, family_of
from enforcement.model.sizes import MAX_ATTRIBUTE_LENGTH
from enforcement.model.tokens import Anonymous, is_well_formed
from enforcement.plan.decision import Decision
from enforcement.plan.decision_ids import label_of
from enforcement.plan.error_shapes import error_body, retry_fields
from enforcement.plan.headers import LIST_FIELDS, presets

DEGRADED_FIELD: Final = "Sluicegate-Degraded"
"""Header field of every response whose decision was made without the store. Its value is the source."""

DECISION_FIELD: Final = "Sluicegate-Decision"
"""Header field of every denial. Its value is the id of the decision."""

DENIAL_FIELD: Final = "Sluicegate-Denial"
"""Header field of every denial. Its value is the reason."""

CAP_FIELD: Final = "Sluicegate-Cap"
"""Header field of the answer to a request into which a cap on output tokens was written. Its value is the cap."""

CLIENT_GONE: Final = 499
"""Status for ``charge_on`` if the client left before a response began. nginx uses the same number."""

_PROVIDER_KEYS: Final = ("x-goog-api-key", "api-key")
TOKEN_FIELDS: Final = ("authorization", "x-api-key", *_PROVIDER_KEYS)
"""Header fields that may show a token, in the order in which they count. SDKs of Gemini and Azure send the last two."""

_CREDENTIALS: Final = frozenset({"proxy-authorization", "cookie", *TOKEN_FIELDS})
_TOO_LONG: Final = {"path": 414, "method": 400}
_CHALLENGE: Final = 'Bearer realm="sluicegate"'
_WITHOUT_TOKEN: Final = frozenset({"token_required", "unknown_project"})

logger = logging.getLogger("sluicegate.denials")

Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class PlainResponse:
    """A complete response that an integration itself makes."""

    status: int
    headers: tuple[Header, ...] = ()
    body: bytes = b""

    @property
    def phrase(self) -> str:
        """The reason phrase of the status, such as ``Too Many Requests``."""
        return HTTPStatus(self.status).phrase


class Refusal(Exception):
    """
    A request that is refused without a decision.

    Attributes:
        status: The HTTP status.
        title: A few words for the reason.
        detail: A sentence that says what to do.
        code: The reason in a word.
        fields: Header fields of the response.
    """

    def __init__(self, status: int, title: str, detail: str, code: str, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail, self.code = status, title, detail, code
        self.fields = (*headers, (DENIAL_FIELD, code))

    def answer(self, preset: str) -> PlainResponse:
        """Return a new response, whose body has the shape that *preset* names, as that of a denial."""
        return error_answer(preset, self.status, self.title, self.code, self.detail, self.fields)


def without_token(shown: str | None, anonymous: Anonymous | None) -> Anonymous:
    """
    Return what stands for a request that shows no token, or an empty one.

    Args:
        shown: None if the request shows no token. An empty string if it shows an empty one, which is refused.
        anonymous: Stands for requests without a token. None: they are refused.
    Raises:
        Refusal: The request needs a token.
    """
    if shown is not None or anonymous is None:
        raise missing_token()
    return anonymous


def missing_token() -> Refusal:
    """Return a new Refusal with status 401 for a request without a token."""
    detail = "Send a token as 'Authorization: Bearer <token>' or 'X-API-Key: <token>'."
    return Refusal(401, "A token is required", detail, "missing_token", (("WWW-Authenticate", _CHALLENGE),))


def error_answer(
    preset: str, status: int, title: str, code: str, detail: str = "", headers: Iterable[Header] = ()
) -> PlainResponse:
    """
    Return a new response to an error that is no decision.

    Args:
        preset: A preset of header fields. If it names a provider, the body is an error for the SDK of that provider.
            Otherwise it is a problem (RFC 9457).
        title: A few words for the error.
        code: The error in a word.
        detail: A sentence. Empty: *title* says enough.
    """
    body = error_body(preset, status, code, "", detail or f"{title}.")
    if body is None:
        body = {"type": "about:blank", "title": title, "status": status, "code": code}
        body |= {"detail": detail} if detail else {}
    return _json_answer(status, body, headers)


def _json_answer(status: int, body: Mapping[str, object], headers: Iterable[Header]) -> PlainResponse:
    data = json.dumps(body).encode()
    # The body is a problem unless it has the shape of a provider's errors.
    kind = "application/problem+json" if "status" in body else "application/json"
    fixed = (("Content-Type", kind), ("Content-Length", str(len(data))))
    return PlainResponse(status, (*fixed, *headers), data)


def denial(decision: Decision, preset: str, shape: str = "") -> PlainResponse:
    """
    Log a denial, and return a new response with the decision in its JSON body and header fields.

    Args:
        shape: The provider whose errors the body resembles, if the preset names none. Empty: none.
    """
    log_denial(decision)
    headers, named = added_headers(decision, preset), f"{preset}+{shape}" if shape else preset
    if decision.status == 401:
        headers.append(("WWW-Authenticate", challenge(decision.reason)))
    elif decision.status != 403:
        headers += retry_fields(named, decision.retry_after_ms)
    return _json_answer(decision.status, decision.problem(named), headers)


def log_denial(decision: Decision) -> None:
    """Write a line with the reason, the limit and the id of a denial, if the log takes lines of the level info."""
    if logger.isEnabledFor(logging.INFO):
        limit = decision.limit
        name = "no limit" if limit is None else label_of(limit.policy, limit.name)
        logger.info("Denied: %s by %s, decision %s.", decision.reason, name, decision.id or "without an id")


def challenge(reason: str) -> str:
    """Return the value of ``WWW-Authenticate``, which names an error only if the request has shown a token."""
    return _CHALLENGE if reason in _WITHOUT_TOKEN else f'{_CHALLENGE}, error="invalid_token"'


def added_headers(decision: Decision, preset: str) -> list[Header]:
    """Return the names and values of the header fields that a decision adds to any response."""
    headers = list(decision.headers(preset).items())
    if decision.degraded:
        headers.append((DEGRADED_FIELD, decision.source))
    if not decision.allowed:
        headers.append((DENIAL_FIELD, decision.reason))
        if decision.id:
            headers.append((DECISION_FIELD, decision.id))
    return headers


def joining(present: Iterable[str | bytes], added: Sequence[Header]) -> Sequence[Header]:
    """
    Return those of the *added* header fields that are lists or that the application has not set itself.

    List fields can always be added. A field of one value is left out if the application has set it, because ours might
    promise more than the application does. So is one if the application has set another field of its family, because
    the two would describe different limits.

    Args:
        present: Names of the application's fields, in any case.
        added: Our fields.
    """
    for name, _ in added:
        if name not in LIST_FIELDS:
            break
    else:
        return added  # the usual case
    theirs = {(name.decode("latin-1") if isinstance(name, bytes) else name).lower() for name in present}
    families = families_in(theirs)

    def is_taken(name: str) -> bool:
        family = family_of(name)
        return name.lower() in theirs or (family is not None and family[0] in families)

    return [header for header in added if header[0] in LIST_FIELDS or not is_taken(header[0])]


def check_preset(preset: str) -> str:
    """Return *preset*, or raise ValueError if there is no such preset."""
    presets(preset)
    return preset


def check_anonymous(project: str | None) -> Anonymous | None:
    """Return what stands for requests without a token, or None, or raise ValueError if *project* cannot be a slug."""
    try:
        return None if project is None else Anonymous(project)
    except ValueError as exc:
        raise ValueError(f"anonymous: {str(exc).removeprefix('project: ')}") from exc


def find_token(authorization: str | None, *keys: str | None) -> str | None:
    """
    Return the bearer token or the API key of a request, the first that is well-formed if it has several.

    Args:
        keys: Values of the header fields for keys, such as ``X-API-Key``.
    Returns:
        An empty string if its fields hold no token. None if it has none of them: only then can it be anonymous.
    """
    if keys.count(None) == len(keys):  # as nearly always
        if authorization is None:
            return None
        scheme, _, bearer = authorization.partition(" ")
        return bearer.strip() if scheme.lower() == "bearer" else ""
    scheme, _, bearer = (authorization or "").partition(" ")
    shown = [bearer if scheme.lower() == "bearer" else "", *filter(None, keys)]
    found = [value.strip() for value in shown if value.strip()]
    if len(found) > 1:  # the others may be credentials for the upstream
        return next((value for value in found if is_well_formed(value)), found[0])
    return found[0] if found else ""


def token_in(field: Callable[[str], str | None]) -> str | None:
    """
    Return the token of a request from its header fields, see :func:`find_token`.

    A field of a provider's SDK counts only if it holds what has the form of a token. Otherwise it is a key for the
    application, and says nothing of who asks.

    Args:
        field: Return the value of the header field with a name in lower case, or None.
    """
    shown = find_token(field("authorization"), field("x-api-key"))
    for name in _PROVIDER_KEYS:
        key = field(name)
        if key is not None and is_well_formed(key.strip()) and not is_well_formed(shown):
            return key.strip()
    return shown


def shows(field: bytes, token: object) -> bool:
    """
    Return whether an ``Authorization`` field shows this very token.

    Only then may it stand for the token later. A credential for the upstream beside ``X-API-Key`` must never do that.
    """
    return find_token(field.decode("latin-1"), None) == token


class RequestAttributes(Mapping[str, str]):
    """
    The attributes of a request.

    They are ``method``, ``path``, ``ip``, what the application adds, and others on demand. ``header.x-team`` is looked
    up when a limit needs it, so headers are not listed or counted here. Headers that hold credentials are never
    attributes. ``ip.net`` is derived from ``ip``, see :func:`network_of`. ``method`` is in capitals, because Django and
    Flask take ``post`` for ``POST``.

    Raises:
        Refusal: A value is too long. It is not shortened, because it might then name another request.
    """

    __slots__ = ("_header", "_values")

    def __init__(self, values: Mapping[str, str | None], header: Callable[[str], str | None]) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._header = header
        method = self._values.get("method")
        if method is not None and not method.isupper():
            self._values["method"] = method.upper()
        for name, status in _TOO_LONG.items():
            if len(self._values.get(name, "")) > MAX_ATTRIBUTE_LENGTH:
                _check_length(name, self._values[name], status)

    def beside(self, values: Mapping[str, str]) -> RequestAttributes:
        """Return a copy with further values, of names that it does not have yet. Raises Refusal if one is too long."""
        check_lengths(values)
        made = RequestAttributes.__new__(RequestAttributes)
        made._values, made._header = {**values, **self._values}, self._header  # its own were checked before
        return made

    def with_path(self, path: str, method: str = "") -> RequestAttributes:
        """Return a copy with another path, which must not be longer than the own one, and perhaps another method."""
        made = RequestAttributes.__new__(RequestAttributes)
        made._values, made._header = {**self._values, "path": path}, self._header
        if method:
            made._values["method"] = method
        return made

    def __getitem__(self, name: str) -> str:
        if name in self._values:
            return self._values[name]
        if name == "ip.net":
            return network_of(self._values["ip"])
        header = name.removeprefix("header.")
        value = None if header == name or header in _CREDENTIALS else self._header(header)
        if value is None:
            raise KeyError(name)
        # Not every server drops the white space around a value, which is no part of it (RFC 9112, 5).
        return _check_length(name, value.strip(" \t"), 431)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def check_lengths(values: Mapping[str, str]) -> None:
    """Raise Refusal if an attribute from the body of a request is too long."""
    if max(map(len, values.values()), default=0) > MAX_ATTRIBUTE_LENGTH:
        for name, value in values.items():
            _check_length(name, value, 400)


def _check_length(name: str, value: str, status: int) -> str:
    if len(value) > MAX_ATTRIBUTE_LENGTH:
        rule = f"must have at most {MAX_ATTRIBUTE_LENGTH} characters, because limits depend on it"
        detail = f"{name}: {rule}; got {len(value)}."
        raise Refusal(status, HTTPStatus(status).phrase, detail, "attribute_too_long")
    return value
