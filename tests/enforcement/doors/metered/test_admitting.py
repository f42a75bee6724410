"""Values that only a meter can read in a body, while an operator has suspended them."""

import json

import pytest

from enforcement.doors.asgi import LimitMiddleware
from tests.enforcement.doors.metered.budgets import PRICE, RPM, TPM, publish_metered, used
from tests.enforcement.doors.metered.provider import CHAT, ask
from tests.enforcement.store_calls.test_emergency import emergency
from tests.enforcement.world import PROJECT, fixed

HELLO = {"model": "gpt-y", "messages": []}
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "delete"}}
TWICE = b'{"model":"gpt-y","model":"gpt-x","messages":[]}'


@pytest.mark.parametrize("limits", [(RPM,), ()])
@pytest.mark.parametrize(
    ("value", "path", "body"),
    [
        (("model", "gpt-x"), CHAT, {**HELLO, "model": "gpt-x"}),
        (("session", "bad"), CHAT, {**HELLO, "metadata": {"session_id": "bad"}}),
        (("tool", "delete"), "/mcp", CALL),
        (("model", "gpt-x"), CHAT, TWICE),
    ],
)
async def test_it_is_denied_whatever_the_limits_look_at(world, door, provider, limits, value, path, body):
    """A body that may hide it is denied, too."""
    secret = publish_metered(world, *limits)
    world.publish(emergency(values=[(PROJECT, *value)]))
    assert (await ask(door, secret, body, path)).status == 403
    assert provider.seen == []


async def test_all_others_pass_as_they_came(world, door, provider):
    """No limit counts tokens, so nothing is bounded in the body."""
    secret = publish_metered(world, RPM)
    world.publish(emergency(values=[(PROJECT, "model", "gpt-x")]))
    for method, path, body in [("POST", CHAT, HELLO), ("POST", "/v1/files", b"--x--"), ("GET", "/v1/models", b"")]:
        provider.answer = answered
        assert (await ask(door, secret, body, path, method=method)).status == 200
    assert provider.seen == [json.dumps(HELLO).encode(), b"--x--", b""]


async def test_a_denial_names_the_currency_of_the_prices(world, aio_limiter, door):
    """Its sentence is for people, who do not count in millionths."""
    secret = publish_metered(world, fixed(50_000_000, name="usd", unit="micros"))
    answer = await ask(door, secret, {**HELLO, "max_tokens": 30_000_000})
    assert answer.json()["error"]["message"] == "usd can admit 50.00 USD at once, but the request costs more."


async def answered(scope, body, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def test_a_bound_of_tokens_waits_for_the_prices(world, aio_limiter, provider):
    """They say how many tokens a provider adds, which the first requests of a process did not know."""
    secret = publish_metered(world, TPM, estimate="bound")
    world.published.prices({**PRICE, "added_tokens": 5_000})
    provider.usage = None

    answer = await ask(LimitMiddleware(provider, aio_limiter, metered=True), secret, {**HELLO, "max_tokens": 10})

    assert answer.status == 200
    assert (await used(aio_limiter, secret))["tpm"] > 5_000
