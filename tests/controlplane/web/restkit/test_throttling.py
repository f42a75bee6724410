"""REST limits itself, with the library and a real store."""

from collections.abc import Iterator

import pytest

from controlplane.traffic.fleet.heartbeats import live_instances
from controlplane.web.restkit import throttling
from controlplane.web.restkit.documentation import Documentation
from controlplane.web.site import api_urls
from enforcement.model.keys import MAX_PREFIX_LENGTH, Keys, rest_prefix
from tests.controlplane.web.restkit.test_access import routes
from tests.factories import ManagementKeyFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def limited(store, settings, monkeypatch) -> Iterator[None]:
    """Five requests a day for each key, and three for each address without one."""
    settings.REST_RATE, settings.REST_FAILURE_RATE = "5/day", "3/day"
    # A machine that is busy with other tests answers later than one of an installation.
    monkeypatch.setattr(throttling, "BUDGET_SECONDS", 5.0)
    yield
    store.thaw()  # a limiter that is closed tells the store
    for limiter in throttling._limiters.values():
        limiter.close()
    throttling._limiters.clear()


def statuses(call, times: int, **options) -> list[int]:
    return [call("GET", "projects", **options).status_code for _ in range(times)]


def test_a_key_that_sends_too_much_is_told_when_to_try_again(call, key, limited):
    """Every response says what is left. Other keys are not concerned."""
    first = call("GET", "projects", key=key)
    rest = statuses(call, 4, key=key)

    denied = call("GET", "projects", key=key)

    assert (first.status_code, first["RateLimit-Policy"]) == (200, '"rest";q=5;w=86400')
    assert first["RateLimit"].startswith('"rest";r=4;')
    assert rest == [200] * 4
    assert (denied.status_code, denied["Content-Type"]) == (429, "application/problem+json")
    assert (denied.json()["code"], denied["RateLimit"].startswith('"rest";r=0;')) == ("rate_limited", True)
    assert 1 <= int(denied["Retry-After"]) <= 86_400
    assert "5/day" in denied.json()["detail"]
    assert statuses(call, 1, key=ManagementKeyFactory()) == [200]


def test_refused_requests_are_charged_to_their_key_too(call, limited):
    """A program that goes on asking for what it may not have costs as much as any other."""
    key = ManagementKeyFactory(scopes=["usage:read"])

    assert statuses(call, 6, key=key) == [403] * 5 + [429]


@pytest.mark.parametrize("sent", ["Bearer sg_mgmt_wrong", "Basic YTpi", None])
def test_an_address_that_guesses_keys_is_limited(call, key, limited, sent):
    """Valid keys go on working from the same address, so nobody can lock them out."""
    headers = {"authorization": sent} if sent else {}

    assert statuses(call, 4, **headers) == [401] * 3 + [429]
    assert statuses(call, 1, key=key) == [200]


def test_a_client_has_one_limit_for_its_whole_network(client, limited):
    """Of IPv6 it may use another address for each request. Other networks are not concerned."""
    peers = [f"2001:db8::{number:x}" for number in range(1, 5)]

    found = [client.get("/api/v1/projects", REMOTE_ADDR=peer).status_code for peer in (*peers, "2001:db8:0:1::1", "")]

    assert found == [401, 401, 401, 429, 401, 401]


@pytest.mark.parametrize("path", ["openapi.json", "", "nothing"])
def test_what_is_for_everybody_is_limited_by_address(call, limited, path):
    """The OpenAPI document takes long to make, and needs no key."""
    assert [call("GET", "").status_code for _ in range(3)] == [200] * 3

    assert call("GET", path).json()["code"] == "rate_limited"


@pytest.mark.parametrize(
    ("trusted", "found"),
    [(["10.0.0.1"], [401, 401, 401, 429, 401]), ([], [401, 401, 401, 429, 429])],
)
def test_a_proxy_in_front_says_whose_limit_it_is_if_it_is_trusted(client, limited, settings, caplog, trusted, found):
    """Otherwise all its clients share one, which the log says, and whose remedy it names."""
    settings.TRUSTED_PROXIES = trusted
    clients = ["192.0.2.1"] * 4 + ["192.0.2.2"]

    answers = [
        client.get("/api/v1/projects", headers={"X-Forwarded-For": one}, REMOTE_ADDR="10.0.0.1") for one in clients
    ]

    assert [answer.status_code for answer in answers] == found
    assert ("SLUICEGATE_TRUSTED_PROXIES" in caplog.text) is not trusted


def test_a_key_that_is_used_from_elsewhere_is_charged_to_the_address(call, limited):
    """Whoever has stolen it does not use up its limit."""
    key = ManagementKeyFactory(networks=["192.0.2.0/24"])

    assert statuses(call, 4, key=key) == [403] * 3 + [429]


def test_the_control_plane_is_no_instance_of_the_fleet(call, key, limited, client_of_store):
    """All that it writes has a prefix of its own."""
    throttling.limiter().start()

    call("GET", "projects", key=key)

    names = client_of_store.keys("*")
    assert names
    assert all(name.startswith("sg:rest:") for name in names)
    assert live_instances(client_of_store) == []


def test_a_store_that_does_not_answer_lets_requests_pass(call, key, limited, store, monkeypatch):
    """Without it nobody knows how many there were."""
    monkeypatch.setattr(throttling, "BUDGET_SECONDS", 0.01)
    store.freeze()

    assert statuses(call, 10, key=key) == [200] * 10
    assert statuses(call, 5) == [401] * 5
    assert throttling.limiter().state == "degraded"


@pytest.mark.parametrize("switched", ["REST_RATE", "REST_FAILURE_RATE"])
def test_each_limit_can_be_switched_off(call, key, limited, settings, switched):
    """Then nothing is counted, and no header speaks of it."""
    setattr(settings, switched, "")
    options = {"key": key} if switched == "REST_RATE" else {}

    found = [call("GET", "projects", **options) for _ in range(7)]

    assert {response.status_code for response in found} == {200 if options else 401}
    assert not any("RateLimit" in response for response in found)
    assert not throttling._limiters


def test_every_address_is_limited():
    """A new view is, too. The page of documentation is made of a file."""
    views = {pattern.callback.cls for _, pattern in routes(api_urls.urlpatterns)}

    assert {view for view in views if not issubclass(view, throttling.ThrottledView)} == {Documentation}


@pytest.mark.parametrize("prefix", ["s:", "sg:", "a-prefix-of-16-c"])
def test_the_own_prefix_begins_as_that_of_the_fleet(prefix):
    """So accounts of the store that may use one may use the other, and keys stay short enough."""
    own = rest_prefix(prefix)

    assert own != prefix
    assert len(Keys(own).prefix) <= MAX_PREFIX_LENGTH
    assert own.startswith(prefix[: MAX_PREFIX_LENGTH - 7])
