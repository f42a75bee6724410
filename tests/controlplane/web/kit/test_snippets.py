"""The examples of the first steps, run as they are printed."""

import os
import re
import subprocess
import sys

import pytest
import redis
from django.utils import timezone

from controlplane.objects.policies.models import Policy
from controlplane.objects.prices.models import ModelPrice
from controlplane.traffic.usage.drain import drain
from controlplane.web.kit.first_steps import steps
from enforcement.embedded import free_port
from tests.controlplane.ready_proxy import Upstream, ready_proxy
from tests.enforcement.world import eventually

pytestmark = pytest.mark.django_db(transaction=True)

PATH = "/admin/first-steps/"
ANSWER = {
    "object": "chat.completion",
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 20},
}


class Provider(Upstream):
    def do_POST(self) -> None:
        self.body()
        self.reply(ANSWER)

    def do_GET(self) -> None:
        self.reply(ANSWER)


def decisions(store_url: str) -> str:
    """What the last step says after the usage of the proxies has arrived."""
    with redis.Redis.from_url(store_url, decode_responses=True, protocol=2) as client:
        drain(timezone.now(), client)
    return steps()[-1].detail.partition(",")[0]


def test_the_examples_lead_to_a_first_decision(admin_client, store, settings, tmp_path):
    """A stranger pastes them, and the waiting turns green, for a budget of money too, which needs a body and prices."""
    port = free_port()
    settings.PROXY_URL = f"http://127.0.0.1:{port}"
    admin_client.post(PATH, {"step": "policy", "template": "llm-budget"})
    page = admin_client.post(PATH, {"step": "token"})
    codes = {name: code for name, _, code in page.context["snippets"]}
    environment = {**os.environ, "SLUICEGATE_REDIS_URL": store.url}

    with ready_proxy(store.url, port, Provider, tmp_path / "log", SLUICEGATE_INSTANCE="proxy-1"):
        sent = subprocess.run(["bash", "-c", codes["curl"]], capture_output=True, text=True, timeout=60, check=True)
        assert sent.stdout.startswith("HTTP/1.1 200 OK"), sent.stdout
        assert eventually(lambda: decisions(store.url) == "1 allowed and 0 denied", 60)
        run = [sys.executable, "-c", codes["python"]]
        asked = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert asked.stdout.startswith("<Decision ok by store:"), asked.stdout
        assert "counts" not in asked.stderr  # no limit that got no cost in its unit
        assert eventually(lambda: decisions(store.url) == "2 allowed and 0 denied", 60)
        reply = admin_client.post(f"{PATH}send/", {"secret": page.context["secret"]})
        assert reply.json() == {"sentence": "The proxy answered with status 200."}


def test_without_a_catalogue_the_page_says_what_is_missing(admin_client, settings):
    """Its prices are in another currency, or somebody has deleted all of them."""
    settings.CURRENCY = "EUR"
    page = admin_client.post(PATH, {"step": "policy", "template": "llm-budget"}, follow=True)

    assert "No model has a price, so requests under this policy are denied." in page.text
    assert Policy.objects.get().slug == "llm-budget"
    assert not ModelPrice.objects.exists()


def test_what_is_typed_after_a_background_job_waits_for_it(admin_client):
    """The decision service and Envoy need a moment to start, and nginx lets requests pass without a service."""
    codes = {name: code for name, _, code in admin_client.get(PATH).context["snippets"]}

    for name in ("nginx", "envoy"):
        background, waiting, *rest = [line for line in codes[name].splitlines() if not line.startswith("#")]
        assert background.endswith("&")
        assert re.match("curl .*--retry-connrefused .*/readyz", waiting)
        assert not rest[0].endswith("&") or "--retry-connrefused" in rest[1]
