"""Ways around a budget at the metered ASGI door. None of them lets a request pass uncharged."""

import asyncio
from threading import current_thread, main_thread

import pytest

from enforcement import aio
from enforcement.doors.metered import admitting
from enforcement.doors.metered import asgi as door_module
from enforcement.doors.metered.bodies import LONG_BODY, MOST_BYTES, BodyRoom
from enforcement.metering.estimate import MESSAGE_TOKENS
from enforcement.model.tokens import mint
from tests.enforcement.doors.metered.budgets import HELLO, TPM, USD, publish_metered, records, used
from tests.enforcement.doors.metered.provider import CHAT, WORD, Visit, ask, event, whole
from tests.enforcement.world import fixed

BY_MODEL = {"partition_by": ["model"]}
OF_MODELS = {"match": {"attributes": {"model": "gpt-*"}}}
TWICE = b'{"model":"gpt-x","model":"gpt-y","messages":[]}'


@pytest.mark.parametrize("rule", [BY_MODEL, OF_MODELS, {"partition_by": ["session"]}, {"partition_by": ["stream"]}])
@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, TWICE), ("/v1/images", HELLO), (CHAT, b"--x"), ("/rpc", {"jsonrpc": "2.0"})]
)
async def test_a_limit_of_some_models_denies_a_body_that_hides_its_model(world, door, provider, rule, path, body):
    """The limit does not match, because the body cannot be read, and so it would not count what the provider reads."""
    secret = publish_metered(world, {**USD, **rule})
    answer = await ask(door, secret, body, path)
    assert (answer.status, answer.headers.get("sluicegate-denial")) == (403, "unmetered")
    assert provider.seen == []


@pytest.mark.parametrize(
    "rule",
    [
        {**BY_MODEL, "unmetered": "count_only"},
        {**BY_MODEL, "mode": "shadow"},
        {"match": {"attributes": {"model": "gpt-*"}, "path": "/v2/*"}},
        {"match": {"attributes": {"model": "gpt-*", "ip": "10.0.0.1"}}},
    ],
)
async def test_a_limit_that_cannot_apply_denies_no_unreadable_body(world, door, provider, rule):
    secret = publish_metered(world, {**USD, **rule})
    assert (await ask(door, secret, TWICE)).status == 200
    assert len(provider.seen) == 1


OF_PATH = {**TPM, "match": {"path": "/v1/*"}}
OF_EACH_PATH = {**TPM, "partition_by": ["path"]}


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        (OF_PATH, "//v1/chat/completions"),
        (OF_PATH, "/x/../v1/chat/completions"),
        (OF_PATH, "/./v1/chat/completions"),
        (OF_PATH, "/\\v1/chat/completions"),
        (OF_PATH, "/;a/v1/chat/completions"),
        (OF_PATH, "//v1/files"),
        ({**TPM, "match": {"path": CHAT}}, "/v1/chat/completions/"),
        ({**TPM, "match": {"path": CHAT}}, "/v1//chat/completions"),
        (OF_EACH_PATH, "/v1/chat/completions/"),
        (OF_EACH_PATH, "/v1/chat/completions."),
        (OF_PATH, "/V1/Chat/Completions"),
        (OF_PATH, "/v1/chat/completions "),
        (OF_PATH, "/v1/chat/completions\t"),
        (OF_PATH, "/v1 /chat/completions"),
        ({**TPM, "match": {"path": CHAT}}, "/v1/chat/completions\n"),
        ({**TPM, "match": {"path": CHAT}}, "/v1/chat/completions\0x"),
        ({**TPM, "match": {"path": CHAT}}, "/v1/chat/completions?x"),
        ({**TPM, "match": {"path": CHAT}}, "/v1/chat/completions.."),
        ({**TPM, "match": {"path": "/v1beta/models/*:generateContent"}}, "/v1beta/models/x:GenerateContent"),
    ],
)
async def test_another_spelling_of_a_path_gets_around_no_limit(world, door, provider, rule, path):
    """The limit does not match it, and the provider takes it for the plain path."""
    secret = publish_metered(world, rule)
    answer = await ask(door, secret, HELLO, path)
    assert (answer.status, answer.headers.get("sluicegate-denial")) == (403, "unmetered")
    assert provider.seen == []


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        (OF_PATH, CHAT),
        (OF_PATH, "/v1//chat/completions/"),
        ({**TPM, "match": {"path": "/v1/chat/completions/"}}, "/v1/chat/completions/"),
        ({**TPM, "match": {"path": "/v2/*"}}, "//v1/chat/completions"),
        ({**OF_PATH, "mode": "shadow"}, "//v1/chat/completions"),
        ({**OF_PATH, "unmetered": "count_only"}, "//v1/chat/completions"),
        ({**OF_PATH, "unit": "requests"}, "//v1/chat/completions"),
        ({**OF_PATH, "unit": "requests"}, "/V1/Chat/Completions"),
        ({**TPM, "match": {"path": "/V1/*"}}, "/V1/chat/completions"),
        (OF_EACH_PATH, "/Proxy/v1/chat/completions"),
    ],
)
async def test_a_spelling_that_changes_no_limit_passes(world, door, provider, rule, path):
    secret = publish_metered(world, rule)
    assert (await ask(door, secret, HELLO, path)).status == 200
    assert len(provider.seen) == 1


OF_POSTS = {**TPM, "match": {"methods": ["POST"]}}
OVERRIDES = [
    {"headers": [(b"x-http-method-override", b"POST")]},
    {"headers": [(b"x_http_method", b"post")]},
    {"query_string": b"%24httpMethod=POST&%24req=%7B%7D"},
    {"query_string": b"_method=POST"},
]


@pytest.mark.parametrize("scope", OVERRIDES)
async def test_a_method_that_stands_elsewhere_gets_around_no_limit(world, door, provider, scope):
    """The limit matches POST alone, and a server may take the request for one."""
    secret = publish_metered(world, OF_POSTS)
    answer = await ask(door, secret, HELLO, method="GET", **scope)
    assert (answer.status, answer.headers.get("sluicegate-denial")) == (403, "unmetered")
    assert provider.seen == []


@pytest.mark.parametrize("rule", [OF_POSTS, {**OF_POSTS, "mode": "shadow"}, {**OF_POSTS, "unmetered": "count_only"}])
async def test_another_method_passes_a_limit_of_posts(world, door, provider, rule):
    secret = publish_metered(world, rule)
    scope = {} if rule is OF_POSTS else OVERRIDES[0]
    assert (await ask(door, secret, HELLO, method="GET", **scope)).status == 200
    assert (await ask(door, secret, HELLO, method="POST", **OVERRIDES[0])).status == 200


async def test_a_bound_counts_what_stands_around_texts(world, aio_limiter, door, provider):
    """A provider has tokens for each message, and for numbers in a schema, although they are no text."""
    secret = publish_metered(world, fixed(10**9, name="tpm", unit="tokens"), estimate="bound")
    schema = {"type": "integer", "enum": list(range(10_000, 11_000))}
    bare = {"model": "gpt-x", "max_tokens": 1}
    tools = [{"function": {"parameters": schema}}]
    asked = {**bare, "messages": [{"role": "user", "content": ""}] * 1_000, "tools": tools}
    held = {}

    async def look(scope, body, receive, send):
        held.update(await used(aio_limiter, secret))
        await whole(send, {"model": "gpt-x", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    provider.answer = look
    assert (await ask(door, secret, asked)).status == 200
    assert held["tpm"] >= 1_000 * MESSAGE_TOKENS + 6 * 1_000
    assert await used(aio_limiter, secret) == {"tpm": 2}


async def test_the_head_of_an_answer_does_not_wait_for_its_body(world, door, provider):
    """Servers send the head with the first part of the body, so an application sends an empty one to begin."""
    secret = publish_metered(world, TPM)
    sent = []

    async def begin(scope, body, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        sent.append(list(visit.answer.chunks))
        await send({"type": "http.response.body", "body": b"{}"})

    provider.answer = begin
    visit = Visit(door, secret, HELLO)
    await visit.task
    assert sent == [[b""]]
    assert records(world) == []


async def test_a_server_that_shuts_down_settles_what_it_has_cancelled(server, world, door, provider):
    """An application that was cancelled may need a moment, to close its connection to the provider for instance."""
    secret = publish_metered(world, TPM)
    await door.start()

    async def slow_to_end(scope, body, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await send({"type": "http.response.body", "body": event(WORD), "more_body": True})
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.3)

    provider.answer = slow_to_end
    visit = Visit(door, secret, {**HELLO, "stream": True})
    while not visit.answer.chunks:
        await asyncio.sleep(0.01)
    visit.task.cancel()
    await door.close()

    assert visit.task.done()
    assert records(world) == []
    async with aio.Limiter(server.url, timeout=1.0, lookup=1.0) as other:
        assert 100 < (await used(other, secret))["tpm"] < 110


async def test_an_answer_is_read_on_although_the_server_cancels_its_request(world, aio_limiter, door, provider):
    """Some servers do that when a client leaves. Without a client that left, a request that is cancelled ends."""
    secret = publish_metered(world, TPM, on_disconnect="drain")
    provider.pause, provider.words = 0.01, 20
    visit = Visit(door, secret, {**HELLO, "stream": True})
    while not visit.answer.chunks:
        await asyncio.sleep(0.005)
    visit.leave()
    await asyncio.sleep(0.02)
    visit.task.cancel()
    await asyncio.wait({visit.task})
    assert visit.task.cancelled()
    await door._guard.settled()

    assert await used(aio_limiter, secret) == {"tpm": 130}
    assert records(world) == []
    other = Visit(door, secret, {**HELLO, "stream": True})
    while not other.answer.chunks:
        await asyncio.sleep(0.005)
    other.task.cancel()
    await asyncio.wait({other.task})
    assert records(world) == []
    assert 230 < (await used(aio_limiter, secret))["tpm"] < 260


async def test_a_report_that_fails_keeps_no_charge_open(world, aio_limiter, door, provider, caplog):
    """The client has its answer by then, so the error is logged."""
    secret = publish_metered(world, TPM)

    async def fail(scope, body, receive, send):
        scope["sluicegate.metered"].report = lambda settlement: 1 / 0
        await whole(send, {"model": "gpt-x", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    provider.answer = fail
    assert (await ask(door, secret, HELLO)).status == 200
    assert await used(aio_limiter, secret) == {"tpm": 2}
    assert records(world) == []
    assert [type(it.exc_info[1]) for it in caplog.records if it.name == "asyncio"] == [ZeroDivisionError]


async def test_bodies_that_are_being_read_have_a_bound_together(world, door, provider):
    """Whoever has a token could otherwise fill the memory by requests that never come to their end."""
    secret = publish_metered(world, TPM)
    door._guard._room = BodyRoom(2_000)
    begun = {"type": "http.request", "body": b"{" + b" " * 599, "more_body": True}
    first = Visit(door, secret, HELLO, messages=[begun], headers=[])
    while door._guard._room.left == 2_000:
        await asyncio.sleep(0.005)
    refused = await ask(door, secret, HELLO)
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    first.leave()
    await first.task
    for _ in range(5):
        assert (await ask(door, secret, HELLO)).status == 200
    assert (await ask(door, secret, TWICE)).status == 403
    assert door._guard._room.left == 2_000


async def test_a_long_body_is_read_apart_from_the_event_loop(world, aio_limiter, door, provider, monkeypatch):
    """Whoever has a token could otherwise stop all other requests for seconds, by one body of many small values."""
    readers = []
    for module, name in ((door_module, "read_request"), (admitting, "open_request")):
        own = getattr(module, name)
        reads = lambda *it, own=own, **more: (readers.append(current_thread()), own(*it, **more))[1]  # noqa: E731
        monkeypatch.setattr(module, name, reads)
    secret = publish_metered(world, TPM)
    long = {**HELLO, "messages": [{"role": "user", "content": "x"}] * (LONG_BODY // 20)}

    assert [(await ask(door, secret, body)).status for body in (HELLO, long)] == [200, 200]
    assert [reader is main_thread() for reader in readers] == [True, True, False, False]
    assert door._guard._room.left == MOST_BYTES


async def test_bodies_of_one_project_leave_room_for_others(world, door, provider):
    """Requests that never end take half of the room at most, however many they are."""
    secret = publish_metered(world, TPM)
    other = mint("live")
    project = world.project(ident="proj_other", slug="other")
    world.publish(project, {other: world.token("pol_api", project="proj_other")})
    door._guard._room = BodyRoom(2_000)
    begun = {"type": "http.request", "body": b"{" + b" " * 299, "more_body": True}
    stalled = [Visit(door, secret, HELLO, messages=[begun], headers=[]) for _ in range(9)]
    while door._guard._room.left > 1_100 or [visit.answer.status for visit in stalled].count(503) < 6:
        await asyncio.sleep(0.005)

    assert (await ask(door, secret, HELLO)).status == 503
    assert (await ask(door, other, HELLO)).status == 200
    assert [visit.answer.status for visit in stalled].count(503) == 6
    for visit in stalled:
        visit.leave()
        await visit.task
    assert door._guard._room.left == 2_000


async def test_a_request_with_a_lower_cap_does_not_count_as_denied(world, aio_limiter, door, provider):
    secret = publish_metered(world, fixed(400, name="tpm", unit="tokens"), clamp_at_least=100)
    assert (await ask(door, secret, HELLO)).status == 200
    assert [(it.reason, it.count) for it in aio_limiter.stats().decisions] == [("ok", 1)]

    assert (await ask(door, secret, {**HELLO, "max_tokens": 50})).status == 200
    assert (await ask(door, secret, {**HELLO, "messages": [{"role": "user", "content": "x" * 1_000}]})).status == 429
    assert sum(it.count for it in aio_limiter.stats().decisions if it.reason != "ok") == 1
