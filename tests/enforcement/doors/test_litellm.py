"""The hooks for LiteLLM in its real proxy, in front of a provider that writes an invoice."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator

import httpx2
import pytest

from enforcement import Limit, Limiter
from enforcement.embedded import free_port
from enforcement.testing import Published
from tests.apart import python_of
from tests.enforcement.doors.conftest import serving
from tests.enforcement.doors.proxy.conftest import url_of
from tests.enforcement.doors.proxy.invoicing import InvoicingProvider
from tests.enforcement.world import eventually
from tests.repository import ROOT
from tests.scale import scale

HOOKS = """
from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

from enforcement.doors.litellm import SluicegateHooks


class OwnHooks(SluicegateHooks):
    pass


class Guard(CustomLogger):
    async def async_post_call_success_hook(self, data, user_api_key_dict, response):
        if "blocked" in str(data.get("messages")):
            raise HTTPException(400, "The answer was blocked.")
        return response


hooks, guard = OwnHooks(), Guard()
"""
CONFIG = """
model_list:
  - model_name: gpt-x
    litellm_params: {{model: openai/gpt-x, api_base: "{url}/v1", api_key: provider-secret, max_retries: 0}}
  - model_name: gpt-impatient
    litellm_params: {{model: openai/gpt-x, api_base: "{url}/v1", api_key: provider-secret, max_retries: 0, timeout: 1}}
litellm_settings: {{callbacks: [limits.hooks, limits.guard], num_retries: 0, telemetry: false}}
"""
PROGRAM = "import uvicorn; uvicorn.run('litellm.proxy.proxy_server:app', port={port}, log_level='critical')"
TOKENS = Limit(name="tokens", unit="tokens", quota=1_000, window_seconds=3_600)
SLOTS = Limit(name="slots", algorithm="concurrency", quota=4, window_seconds=600)
MASTER = f"sk-{secrets.token_hex(32)}"
HELLO = {"model": "gpt-x", "max_tokens": 200, "messages": [{"role": "user", "content": "How is the weather?"}]}

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(scale(small=True, full=False), reason="LiteLLM takes half a gigabyte: make proof starts it."),
]


@pytest.fixture(scope="module")
def published(server) -> Iterator[Published]:
    published = Published(server.url)
    published.project()
    yield published
    published.close()


@pytest.fixture(scope="module")
def provider():
    return InvoicingProvider()


@pytest.fixture(scope="module")
def litellm(published, provider, tmp_path_factory):
    """Run LiteLLM's proxy with our hooks; give a client of it."""
    folder, port = tmp_path_factory.mktemp("litellm"), free_port()
    with serving(provider) as upstream:
        (folder / "limits.py").write_text(HOOKS)
        (folder / "config.yaml").write_text(CONFIG.format(url=str(upstream.base_url).rstrip("/")))
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{folder}",
            "CONFIG_FILE_PATH": str(folder / "config.yaml"),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MASTER_KEY": MASTER,
            "SLUICEGATE_REDIS_URL": url_of(published),
            "SLUICEGATE_TIMEOUT_MS": "1000",
        }
        command = [python_of("litellm"), "-c", PROGRAM.format(port=port)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            assert eventually(lambda: process.poll() is not None or is_alive(address), 90), (folder / "log").read_text()
            assert process.poll() is None, (folder / "log").read_text()
            with httpx2.Client(base_url=address, headers={"authorization": f"Bearer {MASTER}"}, timeout=20.0) as client:
                yield client
        finally:
            process.terminate()
            process.wait(20)


def is_alive(address):
    try:
        return httpx2.get(f"{address}/health/liveliness", verify=False, timeout=2).status_code == 200
    except httpx2.TransportError:
        time.sleep(0.2)
        return False


@pytest.fixture
def token_of(published):
    def make(*limits):
        slug = f"llm-{published.revision}"
        published.policy(slug, *limits)
        return published.token(policy=slug)

    return make


@pytest.fixture
def used_soon(published):
    """Return what each limit of a token has counted, once it is this."""

    def wait(token, expected):
        with Limiter(url_of(published), timeout=1.0, lookup=1.0) as limiter:

            def found():
                states = limiter.check(token, {"requests": 0, "tokens": 0}).limits
                return {state.name: state.quota - state.remaining for state in states}

            eventually(lambda: found() == expected, 5)
            return found()

    return wait


def complete(litellm, token, path="/v1/chat/completions", **changes):
    return litellm.post(path, json={**HELLO, **changes}, headers={"x-sluicegate-token": token} if token else {})


def test_a_call_is_charged_what_the_provider_reports(litellm, token_of, provider, used_soon):
    """And not the 205 that it might have used. The slot is free again."""
    token = token_of(TOKENS, SLOTS)
    provider.invoice.clear()
    answer = complete(litellm, token)

    assert answer.status_code == 200, answer.text
    assert '"tokens";r=795' in answer.headers["ratelimit"]
    assert used_soon(token, {"tokens": provider.tokens, "slots": 0}) == {"tokens": provider.tokens, "slots": 0}


def test_a_stream_is_asked_for_its_usage_and_charged(litellm, token_of, provider, used_soon):
    token = token_of(TOKENS, SLOTS)
    provider.invoice.clear()
    answer = complete(litellm, token, stream=True)

    assert "sunny." in answer.text
    assert '"usage"' not in answer.text, answer.text
    assert used_soon(token, {"tokens": provider.tokens, "slots": 0}) == {"tokens": provider.tokens, "slots": 0}


def test_embeddings_and_messages_are_charged_too(litellm, token_of, provider, used_soon):
    token = token_of(TOKENS)
    provider.invoice.clear()
    answers = [
        litellm.post("/v1/embeddings", json={"model": "gpt-x", "input": "a b"}, headers={"x-sluicegate-token": token}),
        complete(litellm, token, "/v1/messages"),
    ]

    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    assert used_soon(token, {"tokens": provider.tokens}) == {"tokens": provider.tokens}


def test_what_may_cost_too_much_is_denied(litellm, token_of, provider):
    """With our sentence in LiteLLM's error, and without a call of the provider."""
    provider.invoice.clear()
    answer = complete(litellm, token_of(TOKENS), max_tokens=5_000)

    assert answer.status_code == 429
    assert "tokens can admit 1000 tokens at once, but the request costs more." in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert provider.invoice == []


def test_fifty_at_once_and_room_for_one(litellm, token_of, provider):
    """LiteLLM's own budgets let all of them pass, because they charge afterwards."""
    import concurrent.futures

    token = token_of(Limit(name="tokens", unit="tokens", quota=250, window_seconds=3_600))
    provider.invoice.clear()
    complete(litellm, token_of(TOKENS))
    provider.invoice.clear()
    provider.pause = 1.0
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: complete(litellm, token).status_code, range(50)))
    provider.pause = 0.0

    assert (answers.count(200), answers.count(429)) == (len(provider.invoice), 50 - len(provider.invoice))
    assert provider.tokens <= 250


def test_a_call_that_the_provider_refuses_costs_nothing(litellm, token_of, provider, used_soon):
    token = token_of(TOKENS, SLOTS)
    provider.refuses = True
    answer = complete(litellm, token)
    provider.refuses = False

    assert answer.status_code == 500, answer.text
    assert used_soon(token, {"tokens": 0, "slots": 0}) == {"tokens": 0, "slots": 0}


def test_an_answer_that_a_guardrail_blocks_is_charged(litellm, token_of, provider, used_soon):
    """The provider has invoiced it."""
    token = token_of(TOKENS, SLOTS)
    provider.invoice.clear()
    answer = complete(litellm, token, messages=[{"role": "user", "content": "To be blocked"}])

    assert (answer.status_code, len(provider.invoice)) == (400, 1), answer.text
    assert used_soon(token, {"tokens": provider.tokens, "slots": 0}) == {"tokens": provider.tokens, "slots": 0}


def test_an_answer_that_comes_too_late_keeps_its_estimate(litellm, token_of, provider, used_soon):
    """The provider may still write, and bill, all that it was asked for."""
    token = token_of(TOKENS, SLOTS)
    provider.invoice.clear()
    provider.delay = 2.0
    answer = complete(litellm, token, model="gpt-impatient")
    provider.delay = 0.0

    assert (answer.status_code, len(provider.invoice)) == (408, 1), answer.text
    assert used_soon(token, {"tokens": 205, "slots": 0}) == {"tokens": 205, "slots": 0}


def test_a_client_that_leaves_frees_its_slot_and_pays_what_was_seen(litellm, token_of, provider, used_soon):
    token = token_of(TOKENS, SLOTS)
    provider.pause = 0.5
    body = {**HELLO, "stream": True}
    with litellm.stream("POST", "/v1/chat/completions", json=body, headers={"x-sluicegate-token": token}) as answer:
        next(answer.iter_bytes())
    found = {"slots": 1}
    deadline = time.monotonic() + 10
    while found["slots"] and time.monotonic() < deadline:
        found = used_soon(token, {"tokens": -1, "slots": 0})
    provider.pause = 0.0

    assert found["slots"] == 0
    assert 0 < found["tokens"] < 205


@pytest.mark.parametrize(("token", "status"), [("", 401), ("sg_live_wrong", 401)])
def test_a_call_without_a_known_token_is_refused(litellm, token, status):
    assert complete(litellm, token).status_code == status


def test_several_models_at_once_cannot_be_metered(litellm, token_of):
    """LiteLLM would ask each of them, for the price of one."""
    answer = complete(litellm, token_of(TOKENS), model="gpt-x,gpt-x")

    assert answer.status_code == 403
    assert "cost of this request cannot be read" in json.dumps(answer.json())
