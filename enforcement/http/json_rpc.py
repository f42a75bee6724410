"""Denials as JSON-RPC errors, for clients of MCP. They take a body of any other shape for a broken server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from enforcement.http.asgi import READ_BODY, Receive, Scope
from enforcement.http.messages import PlainResponse
from enforcement.model.strict_json import InvalidJSON, loads

DENIED: Final = -32_000
"""The first of the codes that JSON-RPC leaves to servers."""

MAX_BODY: Final = 65_536
"""Bytes of the longest request whose denial is an error of JSON-RPC. Others get the usual body."""

_BODY_FIELDS: Final = frozenset({"content-type", "content-length"})


def check_paths(paths: Iterable[str]) -> frozenset[str]:
    """Return the paths of MCP servers, or raise ValueError if one does not begin with a slash."""
    if isinstance(paths, str) or not all(isinstance(path, str) and path.startswith("/") for path in paths):
        raise ValueError(f"json_rpc: must be paths that begin with /, got {paths!r}.")
    return frozenset(paths)


async def as_json_rpc(scope: Scope, receive: Receive, answer: PlainResponse) -> PlainResponse:
    """
    Return the answer to a request that was refused before its body was read, as an error of JSON-RPC if it is a request
    of that, with the same status and header fields.
    """
    if scope["type"] != "http" or scope["method"] != "POST":
        return answer
    body = scope.get(READ_BODY)
    id = _id_of(await _body(receive) if body is None else body)
    if id is None:
        return answer
    try:
        data: dict[str, object] = json.loads(answer.body)
    except ValueError:
        data = {}
    message = _message(data) or answer.phrase
    error = {"code": DENIED, "message": message, "data": {"status": answer.status, **data}}
    content = json.dumps({"jsonrpc": "2.0", "id": id, "error": error}).encode()
    fields = (("Content-Type", "application/json"), ("Content-Length", str(len(content))))
    others = tuple(field for field in answer.headers if field[0].lower() not in _BODY_FIELDS)
    return PlainResponse(answer.status, (*fields, *others), content)


def _message(data: dict[str, object]) -> str:
    """Return the sentence of a body for people, whichever shape it has."""
    error = data.get("error", data)
    found = error.get("message") or error.get("detail") or error.get("title") if isinstance(error, dict) else ""
    return found if isinstance(found, str) else ""


async def _body(receive: Receive) -> bytes:
    """Return the body of a request, or nothing if it is too long or the client leaves."""
    body, more = b"", True
    while more and len(body) <= MAX_BODY:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return b"" if more or len(body) > MAX_BODY else body


def _id_of(body: bytes) -> str | int | None:
    """Return the id of a request of JSON-RPC, or None if the body is anything else, such as a notification."""
    try:
        asked = loads(body, max_length=MAX_BODY, fractions=True)
    except InvalidJSON:
        return None
    if not isinstance(asked, dict) or asked.get("jsonrpc") != "2.0" or not isinstance(asked.get("method"), str):
        return None
    id = asked.get("id")
    return id if isinstance(id, (str, int)) and not isinstance(id, bool) else None
