"""Requests that the provider might read otherwise than the meter does: by their path, query, header fields and keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from enforcement import Limiter
from enforcement.proof.metering.documents import PRICES
from enforcement.testing import Published
from tests.enforcement.doors.proxy.conftest import Scripted
from tests.enforcement.doors.proxy.test_metered_attacks import BUDGET, LIMITS, Attacked, answering, metering

SMALL, BIG = 8, 180
"""Micros of 10 tokens of input and 10 of output."""
CHAT = {"model": "small", "max_tokens": 20, "messages": [{"role": "user", "content": "x"}]}
TEXT = {"contents": [{"parts": [{"text": "x"}]}]}
GEMINI = "/v1beta/models/small:generateContent"


@pytest.fixture(scope="module")
def kind() -> str:
    return "uvicorn"


def attacking(published: Published, folder: Any, kind: str, base: str) -> Iterator[Attacked]:
    seen: list[str] = []
    upstream = Scripted(answering(seen))
    policy = {"schema": 1, "id": f"pol_{BUDGET}", "slug": BUDGET, "name": BUDGET, "version": 1, "limits": LIMITS}
    published.publish({f"policy:pol_{BUDGET}": policy}, prices=(PRICES,))
    with metering(published, upstream, folder, kind, base) as port:
        yield Attacked(port, seen, published)
    upstream.close()


@pytest.fixture(scope="module")
def attacked(published: Published, tmp_path_factory: Any, kind: str) -> Iterator[Attacked]:
    yield from attacking(published, tmp_path_factory.mktemp("metered"), kind, "")


@pytest.fixture(scope="module")
def azure(published: Published, tmp_path_factory: Any, kind: str) -> Iterator[Attacked]:
    """A proxy whose upstream is one deployment, so that clients name no path but the last one."""
    yield from attacking(published, tmp_path_factory.mktemp("azure"), kind, "/openai/deployments/big-1")


def send(attacked: Attacked, path: str, body: Any, fields: str = "") -> tuple[int, str]:
    """Send a request, and return the status of the answer and the token that it has used."""
    token, data = attacked.token(BUDGET), json.dumps(body, ensure_ascii=False).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    answer = attacked.send(f"{head}{fields}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return int(answer.split()[1]), token


def spent(limiter: Limiter, token: str) -> int:
    decision = limiter.check(token, {"requests": 0, "micros": 0}, {"model": "small"})
    return sum(state.quota - state.remaining for state in decision.limits)


def test_the_model_is_that_of_the_path_that_the_upstream_gets(server: Any, azure: Attacked) -> None:
    """The body names a cheaper one, which Azure does not read."""
    status, token = send(azure, "/chat/completions", CHAT)
    with Limiter(server.url, timeout=2.0, lookup=5.0) as limiter:
        assert (status, spent(limiter, token)) == (200, BIG)


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/OpenAI/Deployments/big-1/chat/completions", CHAT, ""),
        ("/openai/deployments/small/..%5Cbig-1/chat/completions", CHAT, ""),
        ("/openai/deployments/small/..;/big-1/chat/completions", CHAT, ""),
        ("/openai/deployments/chat/completions", CHAT, ""),
        (f"{GEMINI}?alt=proto", TEXT, ""),
        (f"{GEMINI}?%24alt=proto", TEXT, ""),
        (f"{GEMINI}?fields=candidates", TEXT, ""),
        (f"{GEMINI}?callback=x", TEXT, ""),
        (GEMINI, TEXT, "X-Goog-FieldMask: candidates\r\n"),
        (GEMINI, TEXT, "X-Goog-Encode-Response-If-Executable: base64\r\n"),
        (f"{GEMINI}?$httpHeaders=X-Goog-FieldMask%3Acandidates", TEXT, ""),
        (f"{GEMINI}?%24req=x", TEXT, ""),
        ("/v1/chat/completions", {**CHAT, "models": ["small", "big-1"]}, ""),
        ("/v1/chat/completions", {**CHAT, "fallbacks": [{"small": ["big-1"]}]}, ""),
        ("/v1/chat/completions", {**CHAT, "model": "small,big-1"}, ""),
        ("/v1/engines/big-1/chat/completions", CHAT, ""),
        ("/openai/deployments/small/big-1/chat/completions", CHAT, ""),
        ("/api/v4/async/chat/completions", CHAT, ""),
        ("/v1/chat/completions", CHAT, "Content-Type: application/json; charset=utf-7\r\n"),
        ("/v1/chat/completions", CHAT, "Content-Type: application/json; charset*=utf-7''x\r\n"),
        ("/v1/chat/completions", {**CHAT, "Model": "big-1"}, ""),
        ("/v1/chat/completions", {**CHAT, "N": 100}, ""),
        ("/v1/chat/completions", {**CHAT, "max_to\u212aens": 10**6}, ""),
        ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"Include_Usage": False}}, ""),
        (GEMINI, {**TEXT, "generationConfig": {"MaxOutputTokens": 10**6}}, ""),
        (GEMINI, {**TEXT, "generationConfig": {"maxoutputtokens": 10**6}}, ""),
        (GEMINI, {**TEXT, "generationconfig": {"maxOutputTokens": 10**6}}, ""),
    ],
)
def test_what_a_provider_may_read_otherwise_is_denied(attacked: Attacked, path: str, body: Any, fields: str) -> None:
    """Nothing of it reaches the provider."""
    before = len(attacked.seen)
    status, _ = send(attacked, path, body, fields)
    assert (status, len(attacked.seen)) == (403, before)


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        (f"{GEMINI}?alt=json&key=x", TEXT, ""),
        (f"{GEMINI}?$alt=json&$.xgafv=2&$prettyPrint=false", TEXT, ""),
        ("/v1/chat/completions", {**CHAT, "models": ["small"], "fallbacks": None}, ""),
        ("/v1/chat/completions", {**CHAT, "deferred": True}, ""),
        ("/v1/engines/small/chat/completions", CHAT, ""),
        ("/v1/chat/completions?alt=proto", CHAT, ""),
        ("/v1/chat/completions", CHAT, "Content-Type: application/json; charset=UTF-8\r\n"),
        ("/v1/responses", {"model": "small", "input": "x", "background": "true"}, ""),
    ],
)
def test_what_all_read_alike_passes_and_is_charged(
    server: Any, attacked: Attacked, path: str, body: Any, fields: str
) -> None:
    status, token = send(attacked, path, body, fields)
    with Limiter(server.url, timeout=2.0, lookup=5.0) as limiter:
        assert status == 200
        assert spent(limiter, token) >= SMALL


def test_a_fragment_hides_no_path(server: Any, attacked: Attacked) -> None:
    """Some servers take it for part of the path, and some upstreams do not."""
    status, token = send(attacked, "/v1/chat/completions#/embeddings", CHAT)
    with Limiter(server.url, timeout=2.0, lookup=5.0) as limiter:
        assert status in (400, 403) or spent(limiter, token) == SMALL
