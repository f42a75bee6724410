"""What the hooks for LiteLLM keep of open calls. ``test_litellm.py`` runs them in its proxy, in ``make proof``."""

import sys
from datetime import UTC, datetime
from types import ModuleType, SimpleNamespace

import pytest
from fastapi import HTTPException

from tests.enforcement.doors.metered.budgets import publish_metered, used
from tests.enforcement.world import fixed

TPM = fixed(10_000, name="tpm", unit="tokens")
SLOTS = {"name": "slots", "algorithm": "concurrency", "quota": 100, "window_seconds": 60}
BODY = {"model": "gpt-x", "max_tokens": 100, "messages": [{"role": "user", "content": "x" * 400}]}
ANSWER = {"object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 10}}


@pytest.fixture
def module(monkeypatch):
    """Import the hooks with a stand-in for the class that they derive from, which has nothing that they use."""
    base = ModuleType("litellm.integrations.custom_logger")
    base.CustomLogger = object
    for name in ("litellm", "litellm.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "enforcement.doors.litellm", raising=False)
    import enforcement.doors.litellm as hooks

    yield hooks
    sys.modules.pop("enforcement.doors.litellm", None)


@pytest.fixture
def begin(module, aio_limiter):
    """Return the hooks, and a function that begins a call of this name."""
    hooks = module.SluicegateHooks(aio_limiter)

    async def call(token, ident, **changes):
        request = {"url": "http://x/v1/chat/completions", "method": "POST", "headers": {}, "body": BODY}
        data = {**BODY, "proxy_server_request": request, "litellm_call_id": ident, **changes}
        return await hooks.async_pre_call_hook(SimpleNamespace(metadata={"sluicegate_token": token}), None, data, "")

    return hooks, call


async def end(hooks, ident):
    await hooks.async_log_success_event({"litellm_call_id": ident}, ANSWER, None, None)


async def test_calls_of_one_name_are_each_settled_once(world, aio_limiter, begin):
    """A client may choose the name, in a header field. Later reports of the same call change nothing."""
    hooks, call = begin
    secret = world.everything(TPM, SLOTS)
    for _ in range(2):
        await call(secret, "mine")
    assert await used(aio_limiter, secret) == {"tpm": 400, "slots": 2}

    for _ in range(3):
        await end(hooks, "mine")
    assert await used(aio_limiter, secret) == {"tpm": 60, "slots": 0}


async def test_a_call_that_is_never_ended_keeps_its_estimate_and_no_slot(
    world, aio_limiter, begin, module, monkeypatch
):
    hooks, call = begin
    monkeypatch.setattr(module, "OPEN_SECONDS", 0.01)
    secret = world.everything(TPM, SLOTS)
    await call(secret, "lost")
    while hooks._calls or module._ENDING:
        await module.asyncio.sleep(0.01)

    assert await used(aio_limiter, secret) == {"tpm": 200, "slots": 0}


async def test_the_oldest_call_is_ended_if_too_many_are_open(world, aio_limiter, begin, module, monkeypatch):
    hooks, call = begin
    monkeypatch.setattr(module, "MAX_OPEN", 2)
    secret = world.everything(TPM, SLOTS)
    for ident in ("a", "b", "c"):
        await call(secret, ident)
    while module._ENDING:
        await module.asyncio.sleep(0.01)

    assert list(hooks._calls) == ["b", "c"]
    assert (await used(aio_limiter, secret))["slots"] == 2


async def test_an_answer_without_usage_keeps_its_estimate(world, aio_limiter, begin):
    hooks, call = begin
    secret = world.everything(TPM)
    await call(secret, "odd")
    await hooks.async_log_success_event({"litellm_call_id": "odd"}, None, None, None)

    assert await used(aio_limiter, secret) == {"tpm": 200}


async def test_an_answer_above_its_bound_is_counted_and_the_next_call_reserves_more(world, aio_limiter, begin):
    hooks, call = begin
    secret = publish_metered(world, TPM, estimate="bound")
    answer = {**ANSWER, "usage": {"prompt_tokens": 2_000, "completion_tokens": 10}}
    await call(secret, "broken")
    await hooks.async_log_success_event({"litellm_call_id": "broken"}, answer, None, None)
    await call(secret, "next")

    assert aio_limiter.stats().broken_bounds == {("gpt-x", "openai-chat"): 1}
    assert await used(aio_limiter, secret) == {"tpm": 2_010 + 2_100}


async def test_what_the_provider_refuses_is_given_back(world, aio_limiter, begin):
    """LiteLLM also tells of failures of which nothing is open, such as our own denials."""
    hooks, call = begin
    secret = world.everything(TPM, SLOTS)
    await call(secret, "refused")
    for ident in ("refused", "refused", "another", None):
        await hooks.async_post_call_failure_hook({"litellm_call_id": ident}, ValueError(), None)

    assert await used(aio_limiter, secret) == {"tpm": 0, "slots": 0}


class ProviderError(Exception):
    """An error of a provider, as LiteLLM raises it."""

    def __init__(self, status):
        self.llm_provider, self.status_code = "openai", status


class Timeout(ProviderError):
    """LiteLLM has stopped waiting. Its class has this name."""


class APIConnectionError(ProviderError):
    """So is the class that LiteLLM gives a broken connection, with a status of its own."""


def lifted(output):
    """What LiteLLM adds to a call that has failed: when it was sent, and its usage, which may be a guess."""
    usage = {"prompt_tokens": 20, "completion_tokens": output}
    return {
        "first_api_call_start_time": datetime.now(UTC),
        "combined_usage_object": SimpleNamespace(model_dump=lambda: usage),
    }


@pytest.mark.parametrize(
    ("error", "data", "tokens"),
    [
        pytest.param(ValueError(), lifted(10), 30, id="a guardrail has blocked the answer"),
        pytest.param(ProviderError(500), lifted(10), 30, id="a stream has broken off"),
        pytest.param(ProviderError(500), lifted(0), 0, id="the provider has refused it"),
        pytest.param(Timeout(408), lifted(0), 200, id="the provider may have gone on"),
        pytest.param(APIConnectionError(500), lifted(0), 200, id="the connection has broken"),
        pytest.param(ProviderError(504), lifted(0), 200, id="something before the provider has given up"),
        pytest.param(ValueError(), lifted(0), 200, id="nothing is known of its answer"),
        pytest.param(ValueError(), {}, 0, id="a guardrail has blocked the request"),
        pytest.param(
            ValueError(),
            {"combined_usage_object": {"prompt_tokens": 1, "completion_tokens": 1}, "first_api_call_start_time": "x"},
            0,
            id="a client has sent these names",
        ),
    ],
)
async def test_a_call_that_fails_after_its_answer_is_charged(world, aio_limiter, begin, error, data, tokens):
    """The provider invoices what LiteLLM does not pass on."""
    hooks, call = begin
    secret = world.everything(TPM, SLOTS)
    await call(secret, "failed")
    await hooks.async_post_call_failure_hook({"litellm_call_id": "failed", **data}, error, None)

    assert await used(aio_limiter, secret) == {"tpm": tokens, "slots": 0}


@pytest.mark.parametrize(
    ("rules", "changes", "tokens"),
    [
        ({"estimate": "bound"}, {}, None),
        ({}, {"model": "o3"}, None),
        ({}, {"stream": True}, 30),
    ],
)
async def test_a_failed_call_keeps_its_estimate_where_output_is_hidden(
    world, aio_limiter, begin, rules, changes, tokens
):
    """What LiteLLM has seen is not what the provider invoices."""
    hooks, call = begin
    secret = publish_metered(world, TPM, **rules)
    await call(secret, "failed", **changes)
    reserved = (await used(aio_limiter, secret))["tpm"]
    await hooks.async_post_call_failure_hook({"litellm_call_id": "failed", **lifted(10)}, ProviderError(500), None)

    assert (await used(aio_limiter, secret))["tpm"] == (tokens or reserved)


def test_a_subclass_has_the_hooks_where_litellm_looks_for_them(module):
    """It calls no hook that the class of the object does not define itself."""

    class Own(module.SluicegateHooks):
        async def async_log_success_event(self, *arguments):
            """Override one of them."""

    assert set(module._HOOKS) <= set(vars(Own))
    assert Own.async_pre_call_hook is module.SluicegateHooks.async_pre_call_hook
    assert Own.async_log_success_event is not module.SluicegateHooks.async_log_success_event


async def test_the_default_cap_and_the_usage_of_a_stream_are_written_into_the_call(world, begin):
    """The answer says which cap, and no cap that the call had."""
    hooks, call = begin
    secret = world.everything(TPM)
    data = await call(secret, "caps", max_tokens=None, stream=True, stream_options=None)
    await call(secret, "capped")

    assert (data["max_completion_tokens"], data["stream_options"]) == (4_096, {"include_usage": True})
    heads = [
        await hooks.async_post_call_response_headers_hook({"litellm_call_id": name}, None, None)
        for name in ("caps", "capped", "unknown")
    ]
    assert [head and head.get("Sluicegate-Cap") for head in heads] == ["4096", None, None]
    assert heads[0].keys() - heads[1].keys() == {"Sluicegate-Cap"}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"model": "gpt-x,gpt-y"}, 403),
        ({"model": None}, 403),
        ({"fallbacks": ["gpt-dear"]}, 403),
        ({"max_tokens": -1}, 403),
        ({"messages": [object()]}, 403),
        ({"proxy_server_request": None}, 403),
        ({"max_tokens": 100_000}, 429),
    ],
)
async def test_what_cannot_be_metered_or_paid_is_refused(world, aio_limiter, begin, changes, status):
    """And charges nothing."""
    hooks, call = begin
    secret = world.everything(TPM)
    with pytest.raises(HTTPException) as raised:
        await call(secret, "bad", **changes)

    assert (raised.value.status_code, hooks._calls) == (status, {})
    assert await used(aio_limiter, secret) == {"tpm": 0}


@pytest.mark.parametrize("token", [None, "", "sg_live_wrong", 5, ["x"]])
async def test_a_token_that_is_not_known_is_refused(world, begin, token):
    _, call = begin
    world.everything(TPM)
    with pytest.raises(HTTPException) as raised:
        await call(token, "stranger")

    assert raised.value.status_code == 401
