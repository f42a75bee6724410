"""The examples of the first steps, run as they are printed."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis
from django.utils import timezone

from controlplane.adminkit.first_steps import steps
from controlplane.policies.models import Policy
from controlplane.prices.models import ModelPrice
from controlplane.usage.drain import drain
from enforcement.embedded import free_port

pytestmark = pytest.mark.django_db(transaction=True)

PATH = "/admin/first-steps/"
ANSWER = {
    "object": "chat.completion",
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 20},
}


class Provider(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        text = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def proxy(store_url: str, port: int) -> Iterator[None]:
    """A proxy in front of a provider, as `make up` starts it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider) as provider:
        threading.Thread(target=provider.serve_forever, daemon=True).start()
        own = {"SLUICEGATE_UPSTREAM_URL": f"http://127.0.0.1:{provider.server_port}", "SLUICEGATE_INSTANCE": "proxy-1"}
        environment = {**os.environ, **own, "SLUICEGATE_REDIS_URL": store_url}
        command = [sys.executable, "-m", "enforcement", "proxy", "--port", str(port)]
        process = subprocess.Popen(command, env=environment)
        try:
            while not is_ready(f"http://127.0.0.1:{port}/readyz"):
                assert process.poll() is None
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait()
            provider.shutdown()


def is_ready(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:  # also the HTTPError of a proxy that is not ready
        return False


def decisions(store_url: str) -> str:
    """What the last step says after the usage of the proxies has arrived."""
    with redis.Redis.from_url(store_url, decode_responses=True, protocol=2) as client:
        drain(timezone.now(), client)
    return steps()[-1].detail.partition(",")[0]


def until(store_url: str, detail: str) -> None:
    while decisions(store_url) != detail:
        time.sleep(0.05)


def test_the_examples_lead_to_a_first_decision(admin_client, store, settings):
    """A stranger pastes them, and the waiting turns green, for a budget of money too, which needs a body and prices."""
    port = free_port()
    settings.PROXY_URL = f"http://127.0.0.1:{port}"
    admin_client.post(PATH, {"step": "policy", "template": "llm-budget"})
    page = admin_client.post(PATH, {"step": "token"})
    codes = {name: code for name, _, code in page.context["snippets"]}
    environment = {**os.environ, "SLUICEGATE_REDIS_URL": store.url}

    with proxy(store.url, port):
        sent = subprocess.run(["bash", "-c", codes["curl"]], capture_output=True, text=True, timeout=60, check=True)
        assert sent.stdout.startswith("HTTP/1.1 200 OK"), sent.stdout
        until(store.url, "1 allowed and 0 denied")
        run = [sys.executable, "-c", codes["python"]]
        asked = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert asked.stdout.startswith("<Decision ok by store:"), asked.stdout
        assert "counts" not in asked.stderr  # no limit that got no cost in its unit
        until(store.url, "2 allowed and 0 denied")
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
