"""The metered ASGI door: what may be charged is charged before, what was used is charged after, and nothing leaks."""

import asyncio
import json
import re

import pytest

from enforcement.doors.asgi import LimitMiddleware
from enforcement.doors.wsgi import LimitMiddleware as WsgiMiddleware
from enforcement.http.asgi import METERED
from enforcement.model.tokens import mint
from tests.enforcement.doors.metered.budgets import (
    HELLO,
    PRICE,
    RPM,
    SLOTS,
    STREAM,
    TPM,
    USD,
    publish_metered,
    records,
    used,
)
from tests.enforcement.doors.metered.provider import CHAT, Provider, Visit, ask, event, whole
from tests.enforcement.world import eventually, fixed


async def test_a_request_is_charged_what_the_provider_reports(world, aio_limiter, door):
    """130 tokens for 220 micros, and not the 600 that it might have used."""
    secret = publish_metered(world, TPM, USD, RPM, SLOTS)
    answer = await ask(door, secret, HELLO)

    assert answer.status == 200
    assert await used(aio_limiter, secret) == {"tpm": 130, "usd": 220, "rpm": 1, "slots": 0}
    assert records(world) == []


@pytest.mark.parametrize(
    ("estimate", "numbers", "tokens"),
    [
        ("typical", {}, 100),
        ("typical", {"other/gpt-x/openai-chat": [375_000, 0, 0, 0, 0]}, 150),
        ("typical", {"other/gpt-x/openai-chat": [0, 0, 0, 0, 10**12]}, 200),
        ("typical", {"other/gpt-x/openai-chat": [0, 0, 0, 0, -(10**12)]}, 50),
        ("typical", {"other/gpt-y/openai-chat": [375_000, 0, 0, 0, 0], "other": [9, 9, 9, 9, 9]}, 100),
        ("bound", {}, 516),
        ("bound", {"other/gpt-x/openai-chat": [375_000, 0, 0, 0, 0]}, 516),
    ],
)
async def test_what_was_learned_moves_a_typical_estimate(world, aio_limiter, door, provider, estimate, numbers, tokens):
    """To half and to double of the shipped one at most, and no bound."""
    secret = publish_metered(world, TPM, estimate=estimate)
    world.published.prices(PRICE, learned={"groups": numbers})
    await aio_limiter.find_prices()
    rows = []

    async def answer(scope, body, receive, send):
        rows.extend(records(world))
        await whole(send, {"model": "gpt-x", "choices": [], "usage": provider.usage})

    provider.answer = answer
    await ask(door, secret, HELLO)

    assert [row.about["input"] for row in rows] == [tokens]
    assert await used(aio_limiter, secret) == {"tpm": 130}


async def test_a_stream_is_charged_and_its_added_event_hidden(world, aio_limiter, door, provider):
    secret = publish_metered(world, TPM, USD)
    answer = await ask(door, secret, STREAM)

    assert json.loads(provider.seen[0])["stream_options"] == {"include_usage": True}
    assert b"usage" not in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert await used(aio_limiter, secret) == {"tpm": 130, "usd": 220}


async def test_a_client_that_asked_for_the_usage_gets_it(world, door):
    secret = publish_metered(world, TPM)
    answer = await ask(door, secret, {**STREAM, "stream_options": {"include_usage": True}})
    assert b'"usage"' in answer.body


async def test_a_further_request_is_judged_by_the_present_documents(world, aio_limiter, door, provider):
    """The plan of a token is found by its field from the second request on, until the documents change."""
    secret = publish_metered(world, TPM)
    first = [(await ask(door, secret, HELLO)).status for _ in range(3)]
    world.publish(world.policy("api", fixed(500, name="tpm", unit="tokens")))
    assert await asyncio.to_thread(eventually, lambda: not aio_limiter.derived.metered)

    assert first == [200] * 3
    assert (await ask(door, secret, HELLO)).status == 429
    assert len(provider.seen) == 3


async def test_documents_that_change_while_a_body_comes_count(world, aio_limiter, door, provider):
    """Its token may have been revoked meanwhile."""

    class Late(list):
        def pop(self, at):
            world.publish(world.policy("api", fixed(500, name="tpm", unit="tokens")))
            assert eventually(lambda: not aio_limiter.derived.metered)
            return super().pop(at)

    # Else it may read the documents only after the first request, and then forgets what that made known.
    await aio_limiter.start(0.0)
    world.followers.append(aio_limiter)
    secret = publish_metered(world, TPM)
    await ask(door, secret, HELLO)
    assert aio_limiter.derived.metered
    body = {"type": "http.request", "body": json.dumps(HELLO).encode(), "more_body": False}
    answer = await ask(door, secret, HELLO, messages=Late([body]))

    assert (answer.status, len(provider.seen)) == (429, 1)


async def test_a_kept_plan_belongs_to_one_field_alone(world, aio_limiter, door):
    """A request with a second credential is read anew each time."""
    secret = publish_metered(world, TPM)
    await ask(door, secret, HELLO)
    beside = await ask(door, secret, HELLO, headers=[(b"x-api-key", b"sk-of-the-application")])
    wrong = await ask(door, mint("live"), HELLO)

    assert (beside.status, wrong.status) == (200, 401)
    assert list(aio_limiter.derived.metered) == [f"Bearer {secret}".encode()]


async def test_an_attribute_of_a_body_that_is_too_long_is_refused_every_time(world, door):
    """Also if the plan of the token is kept."""
    secret = publish_metered(world, TPM)
    await ask(door, secret, HELLO)
    call = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "x" * 1_025}}

    assert [(await ask(door, secret, call, "/mcp")).status for _ in range(2)] == [400, 400]


async def test_while_it_runs_the_most_it_may_cost_is_charged(world, aio_limiter, door, provider):
    """100 tokens of text and 500 of output; an operator sees who has reserved them and for which model."""
    secret = publish_metered(world, TPM, USD)
    provider.pause, provider.words = 0.05, 100
    visit = Visit(door, secret, STREAM)
    while not visit.answer.chunks:
        await asyncio.sleep(0.01)

    assert await used(aio_limiter, secret) == {"tpm": 600, "usd": 2_100}
    (row,) = records(world)
    assert (row.about["model"], row.about["price_revision"]) == ("gpt-x", 1)
    visit.leave()
    await visit.task


async def test_fifty_at_once_and_room_for_one(world, aio_limiter, door, provider):
    """Those that charge afterwards let all fifty pass."""
    secret = publish_metered(world, fixed(700, name="tpm", unit="tokens"))
    provider.pause = 0.02
    answers = await asyncio.gather(*(ask(door, secret, STREAM) for _ in range(50)))

    assert sorted(answer.status for answer in answers) == [200] + [429] * 49
    assert len(provider.seen) == 1
    assert await used(aio_limiter, secret) == {"tpm": 130}


async def test_a_client_that_leaves_pays_what_was_seen(world, aio_limiter, door, provider):
    """The provider is told to stop, the slot is free, and input and what was streamed are charged."""
    secret = publish_metered(world, TPM, SLOTS)
    provider.pause, provider.words = 0.02, 1_000
    visit = Visit(door, secret, STREAM)
    while len(visit.answer.chunks) < 5:
        await asyncio.sleep(0.005)
    visit.leave()
    await asyncio.wait_for(visit.task, 2.0)

    assert provider.told_to_stop.is_set()
    spent = await used(aio_limiter, secret)
    assert spent["slots"] == 0
    assert 105 <= spent["tpm"] <= 130
    assert records(world) == []


async def test_who_leaves_a_model_that_has_thought_before_pays_its_estimate(world, aio_limiter, door, provider):
    """Its name says nothing of that, and neither does the beginning of an answer."""
    secret = publish_metered(world, TPM)
    provider.usage["completion_tokens_details"] = {"reasoning_tokens": 20}
    await ask(door, secret, STREAM)
    provider.pause = 0.02
    visit = Visit(door, secret, STREAM)
    while not visit.answer.chunks:
        await asyncio.sleep(0.005)
    visit.leave()
    await asyncio.wait_for(visit.task, 2.0)

    assert await used(aio_limiter, secret) == {"tpm": 130 + 600}


async def test_a_policy_may_read_the_answer_to_its_end(world, aio_limiter, door, provider):
    """The slot is free at once, and the charge is what the provider reports."""
    secret = publish_metered(world, TPM, SLOTS, on_disconnect="drain")
    provider.words = 20
    provider.go_on.clear()
    visit = Visit(door, secret, STREAM)
    while not visit.answer.chunks:
        await asyncio.sleep(0.005)
    visit.leave()
    while (await used(aio_limiter, secret))["slots"]:
        await asyncio.sleep(0.005)
    assert not visit.task.done()

    provider.go_on.set()
    await visit.task
    assert not provider.told_to_stop.is_set()
    assert await used(aio_limiter, secret) == {"tpm": 130, "slots": 0}


@pytest.mark.parametrize(
    ("variables", "bounds"),
    [
        ({}, (600_000, 64 * 1_048_576, 256)),
        ({"_SECONDS": "5", "_MIB": "1", "S": "0"}, (5_000, 1_048_576, 0)),
    ],
)
async def test_settings_say_how_much_is_read_on(aio_limiter, provider, monkeypatch, variables, bounds):
    for name, value in variables.items():
        monkeypatch.setenv(f"SLUICEGATE_ANSWER_DRAIN{name}", value)
    assert LimitMiddleware(provider, aio_limiter, metered=True)._guard._drains.bounds == bounds


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("SLUICEGATE_ANSWER_DRAIN_SECONDS", "0", "must be an integer from 1 to 3600, got '0'."),
        ("SLUICEGATE_ANSWER_DRAIN_MIB", "1.5", "must be an integer from 1 to 1024, got '1.5'."),
        ("SLUICEGATE_ANSWER_DRAINS", "-1", "must be an integer from 0 to 10000, got '-1'."),
    ],
)
async def test_a_setting_that_breaks_a_rule_is_named(aio_limiter, provider, monkeypatch, name, value, rule):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(f"{name}: {rule}")):
        LimitMiddleware(provider, aio_limiter, metered=True)


@pytest.mark.parametrize(("rules", "reads_on"), [({}, True), ({"on_disconnect": "free"}, False)])
async def test_a_bound_implies_reading_on(world, aio_limiter, door, provider, rules, reads_on):
    """An explicit free is kept: the call is cancelled, and the estimate stays."""
    secret = publish_metered(world, USD, estimate="bound", **rules)
    provider.pause, provider.words = 0.02, 10
    visit = Visit(door, secret, STREAM)
    while not visit.answer.chunks:
        await asyncio.sleep(0.005)
    reserved = (await used(aio_limiter, secret))["usd"]
    visit.leave()
    await asyncio.wait_for(visit.task, 5.0)

    assert provider.told_to_stop.is_set() is not reads_on
    assert await used(aio_limiter, secret) == {"usd": 100 + 4 * 30 if reads_on else reserved}


async def test_what_is_read_on_when_the_server_stops_keeps_its_estimate(
    world, aio_limiter, door, provider, monkeypatch
):
    """The provider may be silent for longer than the server waits. The reservation is settled, and not lost."""
    monkeypatch.setattr("enforcement.doors.metered.asgi.SETTLE_SECONDS", 0.05)
    secret = publish_metered(world, TPM, USD, estimate="bound")
    provider.pause, provider.words = 60.0, 10
    visit = Visit(door, secret, STREAM)
    while not visit.answer.chunks:
        await asyncio.sleep(0.005)
    reserved = await used(aio_limiter, secret)
    visit.leave()
    await asyncio.sleep(0)
    visit.task.cancel()  # as servers do with those that do not end

    await door._guard.settled()
    assert (await used(aio_limiter, secret), records(world)) == (reserved, [])


@pytest.mark.parametrize("asked", [HELLO, STREAM])
async def test_what_a_server_cancels_when_it_stops_keeps_its_estimate(world, aio_limiter, door, provider, asked):
    """Its provider was silent for as long as the server has waited."""
    provider.answer = lambda scope, body, receive, send: asyncio.sleep(60)
    secret = publish_metered(world, TPM, USD, SLOTS, estimate="bound", on_disconnect="free")
    visit = Visit(door, secret, asked)
    while not provider.seen:
        await asyncio.sleep(0.005)
    reserved = await used(aio_limiter, secret)
    visit.task.cancel()
    await asyncio.wait({visit.task})

    await door._guard.settled()
    assert (await used(aio_limiter, secret), records(world)) == ({**reserved, "slots": 0}, [])


@pytest.mark.parametrize("status", [400, 502])
async def test_what_an_application_refuses_before_it_reads_the_body_costs_nothing(world, aio_limiter, provider, status):
    """The provider has never got it, whatever the status says."""

    async def refuse(scope, receive, send):
        await whole(send, {}, status)

    secret = publish_metered(world, TPM, RPM, estimate="bound")
    door = LimitMiddleware(refuse, aio_limiter, metered=True)
    assert (await ask(door, secret, HELLO)).status == status
    assert (await used(aio_limiter, secret), records(world)) == ({"tpm": 0, "rpm": 1}, [])


async def test_an_answer_is_not_read_for_ever(world, aio_limiter, door, provider, monkeypatch):
    """After the bound the provider is told to stop, and what was seen is charged."""
    from enforcement.metering.settlement import DrainBounds

    secret = publish_metered(world, TPM, on_disconnect="drain")
    door._guard._drains.bounds = DrainBounds(ms=200, at_once=1)
    provider.pause, provider.words = 0.02, 10_000
    visit = Visit(door, secret, STREAM)
    while not visit.answer.chunks:
        await asyncio.sleep(0.005)
    visit.leave()
    await asyncio.wait_for(visit.task, 3.0)
    assert 100 < (await used(aio_limiter, secret))["tpm"] < 200
    assert door._guard._drains.take() is not None


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
async def test_what_the_provider_refuses_costs_no_tokens(world, aio_limiter, door, provider, status):
    secret = publish_metered(world, TPM, USD, RPM)

    async def refuse(scope, body, receive, send):
        await whole(send, {"error": {"message": "no"}}, status)

    provider.answer = refuse
    answer = await ask(door, secret, HELLO)
    assert answer.status == status
    assert await used(aio_limiter, secret) == {"tpm": 0, "usd": 0, "rpm": 1}


@pytest.mark.parametrize(("asked", "charged"), [(STREAM, 100), (HELLO, 600)])
async def test_an_application_that_fails_is_charged(world, aio_limiter, door, provider, asked, charged):
    """The request may have reached the provider, which answers one that is not streamed in one piece."""
    secret = publish_metered(world, TPM, SLOTS)

    async def fail(scope, body, receive, send):
        raise RuntimeError("broken")

    provider.answer = fail
    with pytest.raises(RuntimeError, match="broken"):
        await ask(door, secret, asked)
    assert await used(aio_limiter, secret) == {"tpm": charged, "slots": 0}


async def test_an_answer_that_breaks_off_is_charged_what_was_seen(world, aio_limiter, door, provider):
    secret = publish_metered(world, TPM)

    async def break_off(scope, body, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": event({"choices": [{"delta": {"content": "x" * 40}}]}),
                    "more_body": True})  # fmt: skip
        raise RuntimeError("broken")

    provider.answer = break_off
    with pytest.raises(RuntimeError, match="broken"):
        await ask(door, secret, STREAM)
    assert await used(aio_limiter, secret) == {"tpm": 110}


async def test_an_answer_nobody_can_read_keeps_its_estimate(world, aio_limiter, door, provider):
    secret = publish_metered(world, TPM)

    async def gibberish(scope, body, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-encoding", b"unknown")]})
        await send({"type": "http.response.body", "body": b"\x00\x01"})

    provider.answer = gibberish
    assert (await ask(door, secret, HELLO)).body == b"\x00\x01"
    assert await used(aio_limiter, secret) == {"tpm": 600}


async def test_the_provider_is_asked_for_an_answer_that_can_be_read(world, door, provider):
    secret = publish_metered(world, TPM)
    await ask(door, secret, HELLO, headers=[(b"accept-encoding", b"gzip, br")])
    headers = dict(provider.scopes[0]["headers"])
    assert headers[b"accept-encoding"] == b"identity"
    assert headers[b"content-length"] == b"%d" % len(provider.seen[0])


@pytest.mark.parametrize(
    ("policy", "price", "cap"),
    [({}, {}, 4_096), ({}, {"default_cap": 9_000}, 9_000), ({"default_cap": 50}, {"default_cap": 9_000}, 50)],
    ids=["the usual one", "that of its model", "that of the policy"],
)
async def test_a_request_without_a_cap_gets_one_and_its_answer_says_so(
    world, aio_limiter, door, provider, policy, price, cap
):
    secret = publish_metered(world, TPM, **policy)
    world.published.prices({**PRICE, **price})
    await aio_limiter.find_prices()
    answer = await ask(door, secret, {"model": "gpt-x", "messages": []})
    assert json.loads(provider.seen[0])["max_completion_tokens"] == cap
    assert answer.headers["sluicegate-cap"] == str(cap)


@pytest.mark.parametrize("body", [HELLO, STREAM], ids=["whole", "stream"])
async def test_an_answer_says_no_cap_that_the_request_had(world, door, body):
    """Also if something else was written into it."""
    answer = await ask(door, publish_metered(world, TPM), body)
    assert answer.status == 200
    assert "sluicegate-cap" not in answer.headers


async def test_a_cap_is_lowered_to_what_is_left(world, aio_limiter, door, provider):
    secret = publish_metered(world, fixed(400, name="tpm", unit="tokens"), clamp_at_least=100)
    answer = await ask(door, secret, HELLO)
    assert (answer.status, answer.headers["sluicegate-cap"]) == (200, "300")
    assert json.loads(provider.seen[0])["max_tokens"] == 300
    assert (await ask(door, secret, HELLO)).status == 200  # 270 are left: 100 of input, 170 of output
    assert json.loads(provider.seen[1])["max_tokens"] == 170
    assert (await ask(door, secret, HELLO)).status == 429
    assert len(provider.seen) == 2


@pytest.mark.parametrize(
    ("path", "body", "scope", "why"),
    [
        ("/v1/models", b"", {"method": "GET"}, "only a POST"),
        ("/v1/images/variations", HELLO, {}, "no known API"),
        (CHAT, b'{"model":"gpt-x","model":"gpt-y"}', {}, "twice"),
        (CHAT, b'{"model":"gpt-x",}', {}, "not JSON"),
        (CHAT, {"messages": []}, {}, "names no model"),
        (CHAT, HELLO, {"headers": [(b"content-encoding", b"gzip")]}, "compressed"),
        (CHAT + "/x", HELLO, {}, "no known API"),
    ],
)
async def test_what_cannot_be_metered_is_denied(world, aio_limiter, door, provider, path, body, scope, why):
    secret = publish_metered(world, USD, RPM)
    answer = await ask(door, secret, body, path, **scope)
    said = answer.json()
    assert answer.status == 403
    assert answer.headers["sluicegate-denial"] == "unmetered"
    assert why in (said.get("detail") or said["error"]["message"])
    assert provider.seen == []
    assert await used(aio_limiter, secret) == {"usd": 0, "rpm": 0}


async def test_a_body_that_is_too_long_is_denied_or_counted(world, aio_limiter, door, provider):
    """Counted, it passes as it comes, and costs a request."""
    door._guard._max_body = 1_000
    long = {**HELLO, "padding": "x" * 2_000}
    raw = json.dumps(long).encode()
    parts = [{"type": "http.request", "body": raw[i : i + 300], "more_body": i + 300 < len(raw)}
             for i in range(0, len(raw), 300)]  # fmt: skip
    secret = publish_metered(world, USD, RPM)
    assert (await ask(door, secret, long)).status == 403

    world.followers.append(aio_limiter)
    secret = publish_metered(world, {**USD, "unmetered": "count_only"}, RPM)
    for messages in (list(parts), None):
        more = {} if messages is None else {"messages": messages, "headers": []}
        answer = await ask(door, secret, raw, **more)
        assert answer.status == 200
        assert provider.seen.pop() == raw
    assert await used(aio_limiter, secret) == {"usd": 0, "rpm": 2}


async def test_a_model_without_a_price_is_denied_by_a_limit_of_money(world, aio_limiter, door, provider):
    secret = publish_metered(world, USD, TPM)
    answer = await ask(door, secret, {**HELLO, "model": "secret-model"})
    assert answer.status == 403
    assert answer.headers["sluicegate-denial"] == "unpriced_model"
    assert answer.json()["error"]["message"] == "The model secret-model has no price, and these limits need one: usd."
    assert await used(aio_limiter, secret) == {"usd": 0, "tpm": 0}


async def test_a_denial_has_the_shape_of_the_providers_errors(world, door, provider):
    """Its SDK shows the sentence then."""
    secret = publish_metered(world, fixed(10, name="tpm", unit="tokens"))
    openai = await ask(door, secret, HELLO)
    assert openai.json()["error"]["message"] == "tpm can admit 10 tokens at once, but the request costs more."
    assert openai.json()["error"]["decision"] == openai.headers["sluicegate-decision"]
    anthropic = await ask(door, secret, {**HELLO, "model": "claude"}, "/v1/messages")
    assert anthropic.json()["type"] == "error"
    assert anthropic.json()["error"]["type"] == "rate_limit_error"
    assert anthropic.json()["error"]["decision"] == anthropic.headers["sluicegate-decision"]
    unknown = await ask(door, "sg_live_nobody", HELLO)
    assert (unknown.status, unknown.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_nobody_without_a_token_makes_the_door_read_a_body(world, door, provider):
    publish_metered(world, TPM)
    unread = [{"type": "http.request", "body": b"x", "more_body": True}]
    answer = await ask(door, None, b"", messages=unread)
    assert (answer.status, len(unread)) == (401, 1)


async def test_a_client_that_leaves_before_its_body_came_is_charged_nothing(world, aio_limiter, door, provider):
    secret = publish_metered(world, TPM, RPM)
    parts = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    await ask(door, secret, HELLO, messages=parts)
    assert await used(aio_limiter, secret) == {"tpm": 0, "rpm": 0}
    assert provider.seen == []


async def test_limits_match_the_model_and_are_partitioned_by_it(world, aio_limiter, door):
    """Names of models come from the body, so limits can tell them apart."""
    secret = publish_metered(world, fixed(1_000, name="each", unit="tokens", partition_by=["model"]))
    for model in ("gpt-a", "gpt-b"):
        assert (await ask(door, secret, {**HELLO, "model": model})).status == 200
    decision = await aio_limiter.check(secret, {"tokens": 0}, {"model": "gpt-a"})
    assert decision.limits[0].remaining == 870


async def test_a_websocket_is_denied_where_its_cost_counts(world, door, provider):
    secret = publish_metered(world, TPM)
    visit = Visit(door, secret, b"", messages=[{"type": "websocket.connect"}], type="websocket",
                  extensions={"websocket.http.response": {}})  # fmt: skip
    await visit.task
    assert provider.seen == []


async def test_a_background_answer_keeps_its_estimate(world, aio_limiter, door, provider):
    """The provider answers at once and goes on generating."""
    secret = publish_metered(world, TPM)

    async def queued(scope, body, receive, send):
        await whole(send, {"id": "r", "status": "queued", "model": "gpt-x", "usage": None})

    provider.answer = queued
    asked = {"model": "gpt-x", "background": True, "input": "x" * 400, "max_output_tokens": 500}
    assert (await ask(door, secret, asked, "/v1/responses")).status == 200
    assert await used(aio_limiter, secret) == {"tpm": 600}


def test_only_an_asgi_application_is_metered():
    """And a meter alone says what a request costs."""
    with pytest.raises(ValueError, match="metered: must be False, as only the middleware for ASGI"):
        WsgiMiddleware(lambda environ, start: [], metered=True)
    with pytest.raises(ValueError, match="costs: must be None with metered"):
        LimitMiddleware(Provider(), costs=lambda scope: 1, metered=True)
    with pytest.raises(ValueError, match="metered: must be"):
        LimitMiddleware(Provider(), metered="yes")


async def test_a_new_price_is_charged_by_the_next_request(world, aio_limiter, door):
    secret = publish_metered(world, USD)
    await ask(door, secret, HELLO)
    world.followers.append(aio_limiter)
    world.published.prices({**PRICE, "output": 40_000_000})
    await ask(door, secret, HELLO)

    assert await used(aio_limiter, secret) == {"usd": 220 + 1_300}


async def test_prices_that_cannot_be_loaded_deny_money_and_nothing_else(world, door, provider):
    """It is not said that the model has no price, because nobody knows; a limit of tokens needs none."""
    costly, plain = world.everything(USD), mint("live")
    world.publish(world.policy("plain", TPM), {plain: world.token("pol_plain")})
    shadowed = mint("live")
    world.publish(world.policy("shadow", {**USD, "mode": "shadow"}), {shadowed: world.token("pol_shadow")})
    world.publish(prices=({"schema": 9},))
    denied = await ask(door, costly, HELLO)

    assert denied.status == 503
    assert {name.lower(): text for name, text in denied.headers.items()}["sluicegate-denial"] == "degraded_denied"
    assert b"The published prices could not be loaded." in denied.body
    assert provider.seen == []
    assert (await ask(door, plain, HELLO)).status == 200
    assert (await ask(door, shadowed, HELLO)).status == 200


async def test_a_shadow_denies_nothing_for_lack_of_a_bound(world, aio_limiter, door):
    """As all limits are while the glass is broken. A request without a bound is charged its typical estimate."""
    file = [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]
    seen = {}
    await aio_limiter.start(0.0)
    world.followers.append(aio_limiter)
    for mode in ("enforce", "shadow"):
        secret = publish_metered(world, {**TPM, "mode": mode}, estimate="bound")
        seen[mode] = (await ask(door, secret, {**HELLO, "messages": file})).status
    assert seen == {"enforce": 403, "shadow": 200}
    assert await used(aio_limiter, secret) == {"tpm": 130}


async def test_a_field_that_nobody_knows_is_refused_and_counted(world, aio_limiter, provider, door):
    """The door may allow it."""
    asked, secret = {**HELLO, "turbo": True}, publish_metered(world, TPM, estimate="bound")
    allowing = LimitMiddleware(provider, aio_limiter, metered=True, allowed_fields={"turbo": "none"})

    denied = await ask(door, secret, asked)
    assert denied.status == 403
    assert b"the field turbo may change its cost" in denied.body
    assert (await ask(allowing, secret, asked)).status == 200
    assert aio_limiter.stats().refused_fields == {"turbo": 1}


async def test_what_a_bound_would_refuse_is_counted_before_there_is_one(world, aio_limiter, door):
    """The heartbeat reports it, for the doctor."""
    secret = publish_metered(world, TPM)
    assert (await ask(door, secret, {**HELLO, "turbo": True})).status == 200
    recent = aio_limiter.metered_tally().refusals.recent(aio_limiter.now_us())
    assert recent == {"would_refuse": [("turbo", 1)]}
    assert aio_limiter.stats().refused_fields == {}


async def test_a_call_that_counts_tokens_costs_nothing(world, aio_limiter, provider, door):
    """Unless its answer reports usage, which was no count then."""
    secret = publish_metered(world, TPM, estimate="bound")
    generating = provider.answer

    async def count(scope, body, receive, send):
        await whole(send, {"input_tokens": 700}, 200)

    for provider.answer, charged in ((count, 0), (generating, 130)):
        answer = await ask(door, secret, HELLO, "/v1/messages/count_tokens")
        assert answer.status == 200
        assert await used(aio_limiter, secret) == {"tpm": charged}


async def test_a_client_that_leaves_while_tokens_are_counted_pays_nothing(world, aio_limiter, provider, door):
    """Under typical estimates, too: an answer that only counts has no output that nobody has seen."""
    secret = publish_metered(world, TPM)

    async def count(scope, body, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()

    provider.answer = count
    visit = Visit(door, secret, HELLO, "/v1/messages/count_tokens")
    while not visit.answer.status:
        await asyncio.sleep(0.005)
    visit.leave()
    await asyncio.wait_for(visit.task, 2.0)

    assert await used(aio_limiter, secret) == {"tpm": 0}
    assert records(world) == []


@pytest.mark.parametrize("leaves", [False, True])
async def test_what_did_not_reach_the_provider_after_all_costs_nothing(world, aio_limiter, provider, door, leaves):
    """Its connection was closed, and another one is not had, also if the answer was to be read on meanwhile."""
    secret = publish_metered(world, TPM, on_disconnect="drain")
    begun, going = asyncio.Event(), asyncio.Event()

    async def give_up(scope, body, receive, send):
        watching = asyncio.ensure_future(receive())
        begun.set()
        await going.wait()
        scope[METERED].not_sent()
        watching.cancel()

    provider.answer = give_up
    visit = Visit(door, secret, STREAM)
    await begun.wait()
    if leaves:
        visit.leave()
        while not provider.scopes[0][METERED].exchange.is_drained:
            await asyncio.sleep(0.005)
    going.set()
    await asyncio.wait_for(visit.task, 2.0)

    assert await used(aio_limiter, secret) == {"tpm": 0}
    assert records(world) == []


async def test_the_end_of_a_server_waits_for_replies_of_the_store(door):
    """The limiter is closed then, and what the store is asked after that would be lost."""
    guard = door._guard
    reply, next_reply = (asyncio.get_running_loop().create_future() for _ in range(2))
    guard._replies.add(reply)
    ending = asyncio.create_task(guard.settled())
    await asyncio.sleep(0)
    guard._replies.add(next_reply)
    guard._replies.discard(reply)
    reply.set_result(1)
    await asyncio.sleep(0.01)
    assert not ending.done()

    guard._replies.discard(next_reply)
    next_reply.set_result(1)
    await ending
