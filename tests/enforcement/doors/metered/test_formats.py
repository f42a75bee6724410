"""Formats whose usage is not in a body of JSON alone, through the door and through the proxy."""

import asyncio
import json

import pytest

from enforcement.doors.asgi import LimitMiddleware
from enforcement.doors.proxy.settings import ProxySettings
from enforcement.doors.proxy.upstream import Proxy
from tests.enforcement.doors.metered.budgets import HELLO, PRICE, TPM, USD, publish_metered, used
from tests.enforcement.doors.metered.provider import Visit, ask
from tests.enforcement.metering.streams.test_frames import event

CONVERSE = {"messages": [{"role": "user", "content": [{"text": "x" * 400}]}], "inferenceConfig": {"maxTokens": 500}}


def answering(*chunks, headers=()):
    async def answer(scope, body, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [*headers]})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    return answer


async def test_an_event_stream_of_aws_passes_and_is_charged(world, aio_limiter, door, provider):
    secret = publish_metered(world, TPM, USD)
    stream = event("contentBlockDelta", {"delta": {"text": "hi"}}) + event(
        "metadata", {"usage": {"inputTokens": 100, "outputTokens": 30}}
    )
    provider.answer = answering(stream[:50], stream[50:])
    answer = await ask(door, secret, CONVERSE, "/model/gpt-x/converse-stream")
    assert answer.body == stream
    assert await used(aio_limiter, secret) == {"tpm": 130, "usd": 220}


async def test_header_fields_of_an_answer_say_what_was_used(world, aio_limiter, door, provider):
    secret = publish_metered(world, TPM)
    provider.answer = answering(b'{"embeddings": []}', headers=[(b"X-Amzn-Bedrock-Input-Token-Count", b"77")])
    await ask(door, secret, {"texts": ["x" * 400]}, "/model/gpt-embed/invoke")
    assert await used(aio_limiter, secret) == {"tpm": 77}


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/model/gpt-x/converse", CONVERSE, {"__type": "ThrottlingException"}),
        ("/v2/chat", {**HELLO, "max_tokens": 500}, {}),
    ],
)
async def test_a_denial_has_the_form_of_the_errors_of_its_provider(world, door, provider, path, body, error):
    secret = publish_metered(world, {**TPM, "quota": 10})
    answer = await ask(door, secret, body, path)
    assert answer.status == 429
    said = answer.json()
    assert said.pop("decision").startswith("dec_")
    assert {**said, "message": ""} == {**error, "message": ""}
    assert provider.seen == []


@pytest.mark.parametrize(("host", "spent"), [("127.0.0.1", 77), ("router.example", 220)])
async def test_a_cost_that_the_upstream_reports_is_charged_if_the_prices_name_it(
    world, aio_limiter, monkeypatch, host, spent
):
    """Without that, the price is."""
    usage = {"prompt_tokens": 100, "completion_tokens": 30, "cost": 0.000077}
    body = json.dumps({"model": "gpt-x", "choices": [], "usage": usage}).encode()

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    monkeypatch.setenv("SLUICEGATE_UPSTREAM_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    application = Proxy(aio_limiter, ProxySettings.from_env())
    proxy = LimitMiddleware(application, aio_limiter, exempt=application.pages, metered=True)
    secret = publish_metered(world, USD)
    world.published.prices(PRICE, reported_costs=[host])
    await aio_limiter.find_prices()
    visit = Visit(proxy, secret, HELLO, scheme="http")
    await asyncio.wait_for(visit.task, 5)
    assert await used(aio_limiter, secret) == {"usd": spent}
    server.close()


SIGNATURE = (
    b"authorization",
    b"AWS4-HMAC-SHA256 Credential=AKIA/20261201/us-east-1/bedrock/aws4_request, Signature=ab",
)
UNCAPPED = {"messages": CONVERSE["messages"]}


def signed(door, secret, body, path="/model/gpt-x/converse"):
    return ask(door, None, body, path, headers=[(b"x-api-key", secret.encode()), SIGNATURE], scheme="http")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/model/gpt-x/converse", UNCAPPED, "inferenceConfig.maxTokens"),
        ("/model/anthropic.claude-x/invoke", {"anthropic_version": "b", "messages": HELLO["messages"]}, "max_tokens"),
        ("/openai/v1/chat/completions", {**HELLO, "stream": True}, "stream_options.include_usage"),
    ],
)
async def test_nothing_is_written_into_a_body_that_is_signed(world, aio_limiter, door, provider, path, body, field):
    """The provider would refuse it for its signature. The sentence names the field that the client has to set."""
    secret = publish_metered(world, TPM, clamp_at_least=1)
    answer = await signed(door, secret, body, path)
    assert answer.status == 403
    said = f"The body of this request is signed, so that nothing can be written into it: it must set {field}."
    assert said in answer.body.decode()
    assert provider.seen == []
    assert await used(aio_limiter, secret) == {"tpm": 0}


async def test_a_signed_body_with_a_cap_passes_as_it_is_or_is_denied(world, door, provider):
    """Also where a policy would lower the cap of another one."""
    provider.answer = answering(json.dumps({"usage": {"inputTokens": 100, "outputTokens": 30}}).encode())
    secret = publish_metered(world, {**TPM, "quota": 650}, clamp_at_least=1)
    assert [(await signed(door, secret, CONVERSE)).status for _ in range(2)] == [200, 429]
    assert [json.loads(body) for body in provider.seen] == [CONVERSE]
    assert (await ask(door, secret, CONVERSE, "/model/gpt-x/converse")).status == 200
    assert json.loads(provider.seen[1])["inferenceConfig"]["maxTokens"] < 500


async def test_a_signature_that_a_credential_replaces_does_not_count(world, aio_limiter, monkeypatch):
    """The proxy writes the cap, and the upstream gets its credential."""
    got = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        got.set_result(await reader.readuntil(b"}}"))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    monkeypatch.setenv("SLUICEGATE_UPSTREAM_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("SLUICEGATE_UPSTREAM_CREDENTIAL", "bedrock-key")
    application = Proxy(aio_limiter, ProxySettings.from_env())
    proxy = LimitMiddleware(application, aio_limiter, exempt=application.pages, metered=True)
    await signed(proxy, publish_metered(world, TPM, default_cap=7), UNCAPPED)
    server.close()

    assert b"AWS4" not in got.result()
    assert b"Bearer bedrock-key" in got.result()
    assert b'"maxTokens":7' in got.result()
