"""The page on which consumers see their own limits, at the decision service."""

from __future__ import annotations

import time

import httpx2
import pytest

from enforcement import Limit, aio
from enforcement.http.limits_page import USAGE_PATH
from enforcement.http.usage_request import UsageRequest, usage_answer_awaited
from enforcement.service.settings import ServiceSettings
from enforcement.testing import Published
from tests.enforcement.doors.conftest import bearer
from tests.enforcement.faults import FaultyPath
from tests.enforcement.service.running import gateway
from tests.enforcement.world import fixed

SLOTS = {"name": "slots", "algorithm": "concurrency", "quota": 3, "window_seconds": 20}


@pytest.mark.parametrize("server_name", ["h2corn", "uvicorn"])
def test_a_token_sees_its_limits_also_when_they_are_used_up(world, start, server_name):
    """The page is charged to none of them; a proxy passes a request for it on with the client's address."""
    headers = bearer(world.everything(fixed(2), fixed(9, name="by-ip", partition_by=["ip"])))
    client = start("--server", server_name)
    forwarded = {**headers, "X-Forwarded-For": "203.0.113.9"}

    statuses = [client.get("/v1/check", headers=forwarded).status_code for _ in range(3)]
    pages = [client.get(USAGE_PATH, headers=forwarded).json()["limits"] for _ in range(3)]
    head = client.head(USAGE_PATH, headers=headers)

    assert statuses == [200, 200, 429]
    assert [[(row["used"], row["left"]) for row in page] for page in pages] == [[(2, 0), (2, 7)]] * 3
    assert pages[0][1]["partition"] == {"ip": "203.0.113.9"}
    assert (head.status_code, head.content, head.headers["Cache-Control"]) == (200, b"", "no-store")
    assert client.post(USAGE_PATH, headers=headers).status_code == 405
    assert client.get(USAGE_PATH).json()["code"] == "missing_token"
    assert client.get(f"{USAGE_PATH}/x", headers=headers).status_code == 404


def test_limits_that_the_service_cannot_enforce_are_shown(world, start):
    """A token has them at other doors, whatever this one refuses."""
    headers = bearer(world.everything(SLOTS, fixed(5)))
    client = start()

    refused = client.get("/v1/check", headers=headers)
    (slots, rpm) = client.get(USAGE_PATH, headers=headers).json()["limits"]

    assert (refused.status_code, refused.json()["code"]) == (503, "limit_not_supported")
    assert (slots["left"], slots["slot_seconds"], rpm["left"]) == (3, 20, 5)


def test_who_may_not_ask_sees_no_page_and_the_page_can_be_switched_off(world, start):
    """The callers of the service are those of the page, too."""
    headers = bearer(world.everything(fixed(5)))
    closed = start(SLUICEGATE_SERVICE_CALLERS="192.0.2.0/24")
    without = start(SLUICEGATE_USAGE_ENDPOINT="false")

    refused = closed.get(USAGE_PATH, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "caller_refused")
    assert refused.headers["Cache-Control"] == "no-store"
    assert without.get(USAGE_PATH, headers=headers).status_code == 404


@pytest.mark.parametrize("text", ["", "yes", "True", "0", " true"])
def test_the_switch_is_true_or_false(text):
    """Nobody can tell what anything else should mean, an empty string least of all."""
    with pytest.raises(ValueError, match="SLUICEGATE_USAGE_ENDPOINT: must be true or false"):
        ServiceSettings.from_env({"SLUICEGATE_USAGE_ENDPOINT": text})


def test_attributes_of_a_trusted_proxy_select_counters_and_bad_ones_are_refused(world, start):
    """As in a check."""
    headers = bearer(world.everything(fixed(5, partition_by=["model"])))
    client = start(SLUICEGATE_ATTRIBUTES_HEADER="X-Attributes")

    for _ in range(2):
        client.get("/v1/check", headers={**headers, "X-Attributes": "model=large"})
    pages = {
        text: client.get(USAGE_PATH, headers={**headers, "X-Attributes": text})
        for text in ("model=large", "model=small", "path=%2Fx", "model", f"model={'x' * 1_025}")
    }

    rows = [pages[text].json()["limits"][0] for text in list(pages)[:3]]
    assert [(row["used"], row["partition"]) for row in rows] == [
        (2, {"model": "large"}),
        (0, {"model": "small"}),
        (None, None),
    ]
    assert [it.status_code for it in list(pages.values())[3:]] == [400, 400]


def test_an_outage_is_said_and_ends_by_itself(own_server, tmp_path):
    """A frozen store: 503 within the budget, at once when the breaker has opened, and numbers again when it is back."""
    with gateway(own_server, tmp_path, timeout_ms="50") as running:
        headers = bearer(running.token(Limit(name="hourly", quota=5, window_seconds=3600)))
        with httpx2.Client(base_url=f"http://127.0.0.1:{running.service.port}", verify=False, timeout=10.0) as client:
            assert client.get(USAGE_PATH, headers=headers).json()["limits"][0]["left"] == 5
            own_server.freeze()
            codes = {client.get(USAGE_PATH, headers=headers).json().get("code") for _ in range(30)}
            own_server.thaw()
            deadline = time.monotonic() + 10
            while (page := client.get(USAGE_PATH, headers=headers)).status_code != 200:
                assert time.monotonic() < deadline, page.text
                time.sleep(0.02)

    assert codes == {"usage_unavailable"}
    assert page.json()["limits"][0]["used"] == 0


async def test_a_store_that_is_too_slow_for_decisions_still_shows_the_page(own_server):
    """The page has the time of a look-up, and what it waits for says nothing about decisions."""
    published = Published(own_server.url)
    published.project("shop")
    published.policy("own", Limit(name="hourly", quota=5, window_seconds=3600))
    token = published.token(project="shop", policy="own")
    asked = UsageRequest("GET", lambda: token, dict, "ietf")
    path = FaultyPath(own_server.port)
    async with aio.Limiter(path.url, timeout=0.02, lookup=1.0) as limiter:
        await limiter.check(token)
        path.mode, path.delay = "delay", 0.1
        pages = [await usage_answer_awaited(limiter, asked) for _ in range(5)]
        failures = dict(limiter.stats().store_failures)
        path.mode = "pass"
    path.close()
    published.close()

    assert [page.status for page in pages] == [200] * 5
    assert failures.get("timeout", 0) == 0
