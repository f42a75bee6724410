"""Limits on the tools that an agent calls by the Model Context Protocol, through the metered door."""

import json

import pytest

from enforcement.doors.asgi import LimitMiddleware
from tests.enforcement.doors.metered.provider import CHAT, Visit, ask, whole
from tests.enforcement.world import fixed

EACH = fixed(2, name="each-tool", partition_by=["tool"])
NEVER = fixed(0, name="no-drop", match={"attributes": {"tool": "drop_*"}})
HELLO = {"model": "gpt-x", "max_tokens": 5, "messages": []}


def call(name, **changes):
    params = {"name": name, "arguments": {"id": 7}}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params, **changes}


@pytest.fixture
def door(aio_limiter):
    async def tools(scope, receive, send):
        await whole(send, {"jsonrpc": "2.0", "id": 1, "result": {"content": []}})

    return LimitMiddleware(tools, aio_limiter, metered=True)


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


CALL = call("drop_table")
UNSAID = {name: value for name, value in CALL.items() if name != "jsonrpc"}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps(CALL).encode("utf-16"), id="utf-16, which json.loads decodes"),
        pytest.param(json.dumps(CALL).encode("utf-32-be"), id="utf-32"),
        pytest.param(json.dumps(CALL).encode() + b"x", id="something after it, which readers of streams ignore"),
        pytest.param(json.dumps(CALL).encode()[:-1] + b",}", id="a comma too many"),
        pytest.param(UNSAID, id="no version of JSON-RPC"),
        pytest.param([UNSAID], id="a list of such"),
        pytest.param({**UNSAID, "jsonrpc": 2.0}, id="the version as a number"),
        pytest.param({**UNSAID, "JsonRPC": "2.0"}, id="the version in another case"),
        pytest.param({**UNSAID, "jsonrpc": "2.0", "method": "ping", "Method": "tools/call"}, id="another case"),
        pytest.param(call("", params={"name": "search", "Name": "drop_table"}), id="the tool in another case"),
        pytest.param({**call("x"), "param\u017f": {"name": "drop_table"}}, id="a long s"),
    ],
)
async def test_a_call_that_only_others_can_read_is_no_way_around_a_limit(world, door, body):
    """Go ignores the case of keys, Python reads UTF-16, and many servers do not look at the version of JSON-RPC."""
    secret = world.everything(NEVER)

    assert await statuses(door, secret, body) == [403]


async def test_a_call_at_the_path_of_a_provider_is_a_call_all_the_same(world, door):
    """A server of tools may answer below any path."""
    secret = world.everything(NEVER)
    bodies = [{**call(name), "model": "m", "input": "x"} for name in ("drop_table", "search")]

    assert await statuses(door, secret, *bodies, path="/mcp/embeddings") == [429, 200]


async def test_what_calls_no_tool_passes_whatever_it_is(world, door):
    secret = world.everything(NEVER)
    bodies = [{"method": "ping"}, {"name": "drop_table"}, b"--x\r\n{", b"a=b", b"", "text", [1]]

    assert await statuses(door, secret, *bodies, path="/files") == [200] * len(bodies)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/x/../completions",
        "/v1/chat/./completions",
        "/V1/Chat/Completions",
        "/v1/chat/completions;x=1",
        "/v1/chat/completions%20",
        "/v1/chat\\completions",
        "/v1/chat/completions#/files",
        "/v1/images#/v1/chat/completions",
        "/v1beta/models/gemini-x:GenerateContent",
    ],
)
async def test_another_spelling_of_a_path_is_no_way_around_a_limit_of_requests(world, door, path):
    """A provider may read the path less strictly than the meter does."""
    secret = world.everything(fixed(0, name="no-gpt", match={"attributes": {"model": "gpt-*"}}))

    assert await statuses(door, secret, HELLO, path=path) == [200 if "images" in path else 403]


@pytest.mark.parametrize(("path", "status"), [("/v1/responses", 403), ("/events", 200)])
async def test_a_websocket_to_a_provider_is_no_way_around_a_limit_of_requests(world, aio_limiter, path, status):
    """What passes through it names the models. Other websockets of the application pass."""

    async def accepting(scope, receive, send):
        await send({"type": "websocket.http.response.start", "status": 200, "headers": []})

    secret = world.everything(fixed(0, name="no-gpt", match={"attributes": {"model": "gpt-*"}}))
    visit = Visit(
        LimitMiddleware(accepting, aio_limiter, metered=True), secret, b"", path, type="websocket",
        messages=[{"type": "websocket.connect"}], extensions={"websocket.http.response": {}},
    )  # fmt: skip
    await visit.task
    assert visit.answer.status == status


async def test_a_body_that_hides_its_model_is_no_way_around_a_limit_of_requests(world, door):
    secret = world.everything(fixed(0, name="no-gpt", match={"attributes": {"model": "gpt-*"}}))
    hidden = json.dumps(HELLO).replace('"model"', '"model":"other","model"').encode()

    cased = {**HELLO, "model": "other", "Model": "gpt-x"}
    bodies = [HELLO, hidden, cased, {**HELLO, "n": 1.5}, {**HELLO, "model": "other"}]
    assert await statuses(door, secret, *bodies, path=CHAT) == [429, 403, 403, 403, 200]


async def test_a_shadow_limit_denies_no_such_call(world, door):
    secret = world.everything({**NEVER, "mode": "shadow"})

    assert await statuses(door, secret, [call("drop_table")]) == [200]


@pytest.mark.parametrize(("rule", "status"), [({}, 403), ({"unmetered": "count_only"}, 200)])
async def test_a_call_of_a_tool_has_no_tokens(world, door, rule, status):
    """Limits of tokens and money deny it, unless they only count."""
    secret = world.everything(fixed(100, name="tpm", unit="tokens", **rule))

    assert await statuses(door, secret, call("search")) == [status]
