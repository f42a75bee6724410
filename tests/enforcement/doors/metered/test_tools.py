"""Limits on the tools that an agent calls by the Model Context Protocol, through the metered door."""

import json

import pytest

from enforcement import aio
from enforcement.doors.asgi import LimitMiddleware
from tests.enforcement.doors.metered.provider import CHAT, ask, whole
from tests.enforcement.world import fixed

EACH = fixed(2, name="each-tool", partition_by=["tool"])
NEVER = fixed(0, name="no-drop", match={"attributes": {"tool": "drop_*"}})
HELLO = {"model": "gpt-x", "max_tokens": 5, "messages": []}


def call(name, **changes):
    params = {"name": name, "arguments": {"id": 7}}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params, **changes}


@pytest.fixture
async def limiter(server, world):
    limiter = aio.Limiter(server.url, timeout=1.0, lookup=1.0)
    yield limiter
    await limiter.close()


@pytest.fixture
def door(limiter):
    async def tools(scope, receive, send):
        await whole(send, {"jsonrpc": "2.0", "id": 1, "result": {"content": []}})

    return LimitMiddleware(tools, limiter, metered=True)


async def statuses(door, secret, *bodies, path="/mcp", **scope):
    return [(await ask(door, secret, body, path, **scope)).status for body in bodies]


async def test_each_token_has_its_own_calls_of_each_tool(world, door):
    """What calls no tool falls under no such limit."""
    first, second = (world.everything(EACH) for _ in range(2))

    assert await statuses(door, first, *[call("search")] * 3, call("fetch")) == [200, 200, 429, 200]
    assert await statuses(door, second, call("search")) == [200]
    assert await statuses(door, first, *[call("search", method="tools/list")] * 3) == [200] * 3
    assert await statuses(door, first, b"", method="GET") == [200]


async def test_a_tool_can_be_forbidden_by_its_name(world, door):
    secret = world.everything(NEVER)

    assert await statuses(door, secret, call("drop_table"), call("create_table")) == [429, 200]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ([call("drop_table")], [], 403),
        (json.dumps(call("drop_table")).replace('"name"', '"name":"x","name"').encode(), [], 403),
        (json.dumps(call("drop_table")).replace("7", "NaN").encode(), [], 403),
        (call("drop_table"), [(b"content-encoding", b"gzip")], 403),
        (call("drop_" + "x" * 1_020), [], 400),
    ],
)
async def test_a_call_that_cannot_be_read_is_no_way_around_a_limit(world, door, body, headers, status):
    """A server might understand it. The same holds for limits of requests by the model."""
    secret = world.everything(NEVER)

    assert await statuses(door, secret, body, headers=headers) == [status]


async def test_a_body_that_hides_its_model_is_no_way_around_a_limit_of_requests(world, door):
    secret = world.everything(fixed(0, name="no-gpt", match={"attributes": {"model": "gpt-*"}}))
    hidden = json.dumps(HELLO).replace('"model"', '"model":"other","model"').encode()

    bodies = [HELLO, hidden, {**HELLO, "n": 1.5}, {**HELLO, "model": "other"}]
    assert await statuses(door, secret, *bodies, path=CHAT) == [429, 403, 403, 200]


async def test_a_shadow_limit_denies_no_such_call(world, door):
    secret = world.everything({**NEVER, "mode": "shadow"})

    assert await statuses(door, secret, [call("drop_table")]) == [200]


@pytest.mark.parametrize(("rule", "status"), [({}, 403), ({"unmetered": "count_only"}, 200)])
async def test_a_call_of_a_tool_has_no_tokens(world, door, rule, status):
    """Limits of tokens and money deny it, unless they only count."""
    secret = world.everything(fixed(100, name="tpm", unit="tokens", **rule))

    assert await statuses(door, secret, call("search")) == [status]
