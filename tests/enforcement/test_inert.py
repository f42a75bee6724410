"""Nothing is silently inert: decisions, costs and limits that would count nothing say so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import pydoc
import re
from datetime import timedelta
from importlib.metadata import version

import pytest

import enforcement
from enforcement import Denied, InvalidLimit, Limit, Limiter, StoreError, aio
from enforcement.model.keys import Keys
from enforcement.model.tokens import mint
from enforcement.store.client import connect
from enforcement.store.topology import Topology
from tests.enforcement.world import eventually, fixed

RPM = Limit(name="rpm", quota=10, window_seconds=3_600)
TPM = Limit(name="tpm", quota=100, window_seconds=3_600, unit="tokens")
SLOTS = Limit(name="slots", algorithm="concurrency", quota=4, window_seconds=3_600)


@pytest.fixture
def limiter(make_limiter, server, world):
    return make_limiter(server.url, instance="proxy-1")


def test_a_decision_is_true_exactly_if_it_is_allowed(limiter):
    """``if not limiter.hit(...)`` limits, whoever decides: the store, the memory of a denial, or the documents."""
    once = Limit.parse("1/hour")

    assert limiter.hit(once, "b")
    assert not limiter.hit(once, "b")
    assert not limiter.hit(once, "b")
    assert not limiter.check("no token")


def test_a_decision_can_be_kept(limiter, world):
    """A cache or a Celery result holds it whole, without the connections of the process that made it."""
    token = world.everything(fixed(1), fixed(50, name="tpm", unit="tokens"))
    for made in [*(limiter.check(token, {"tokens": 5}) for _ in range(3)), limiter.check("no token")]:
        kept = pickle.loads(pickle.dumps(made))
        assert (bool(kept), kept.reason, kept.source) == (bool(made), made.reason, made.source)
        assert (kept.limits, kept.limit, kept.revision) == (made.limits, made.limit, made.revision)
        assert (kept.headers(), kept.problem(), kept.explain()) == (made.headers(), made.problem(), made.explain())


def test_a_kept_decision_of_a_leased_limit_shows_the_same(limiter, world):
    """Its lease and the size of the fleet stay with the process."""
    token = world.everything(fixed(1_000, consistency="leased"))

    made = [limiter.check(token) for _ in range(50)][-1]

    assert pickle.loads(pickle.dumps(made)).limits == made.limits


def test_a_denial_says_limit_quota_and_wait(limiter):
    """In a log or an error tracker, where nobody asks the decision; and it can be kept, too."""
    day = Limit(name="a-day", quota=3, calendar="lifetime")
    limiter.hit(day, "u", 3)
    with pytest.raises(Denied) as denied, limiter.admit([day, RPM], "u"):
        pass
    assert str(denied.value) == "a-day has 0 of 3 requests left."

    limiter.hit(RPM, "u", 10)
    with pytest.raises(Denied, match=r"^rpm has 0 of 10 requests left\. Try again in \d+ s\.$") as denied:
        limiter.acquire(RPM, "u", max_wait=0)
    assert str(pickle.loads(pickle.dumps(denied.value))) == str(denied.value)

    with pytest.raises(Denied, match=r"^The token is not known\.$"), limiter.admit("no token"):
        pass


NOTHING = "costs: must name a unit of the limits, which count 'tokens', got {}. 0 is a cost too."


@pytest.mark.parametrize(
    ("limits", "costs", "message"),
    [
        (TPM, 1, NOTHING.format(1)),
        (TPM, 90, NOTHING.format(90)),
        (TPM, {"requests": 2}, NOTHING.format("{'requests': 2}")),
        (TPM, {}, NOTHING.format("{}")),
        ([RPM, TPM], {"token": 90}, "costs['token']: must be 0, because no limit of this call counts 'token', got 90."),
        (RPM, {"tokens": 1}, "costs['tokens']: must be 0, because no limit of this call counts 'tokens', got 1."),
        (RPM, {"Tokens": 0}, "costs: each unit must be 1 to 32 of the characters a-z 0-9 _ - and begin with a letter"),
        (RPM, {"": 0}, "costs: each unit must be 1 to 32 of the characters"),
        (RPM, {7: 1}, "costs: each unit must be 1 to 32 of the characters"),
    ],
)
def test_costs_that_limits_in_code_would_not_count_are_errors(limiter, server, limits, costs, message):
    """At every verb of both limiters, before anything is charged."""
    message = f"^{re.escape(message)}"

    async def awaited():
        other = aio.Limiter(server.url, timeout=1.0)
        for call in (other.hit, other.peek, other.open_admission):
            with pytest.raises(ValueError, match=message):
                await call(limits, "u", costs)
        await other.close()

    asyncio.run(awaited())
    for call in (limiter.hit, limiter.peek, limiter.open_admission):
        with pytest.raises(ValueError, match=message):
            call(limits, "u", costs)
    with pytest.raises(ValueError, match=message):
        limiter.limited(limits, costs=costs)(print)
    assert [state.remaining for state in limiter.peek([RPM, TPM], "u").limits] == [10, 100]


@pytest.mark.parametrize(
    ("limits", "costs", "left"),
    [
        (TPM, 0, [10, 100]),
        (TPM, {"tokens": 0}, [10, 100]),
        (TPM, {"tokens": 30, "micros": 0}, [10, 70]),
        ([RPM, TPM], {"tokens": 30}, [9, 70]),
        ([RPM, TPM], 3, [7, 100]),
        (RPM, {"tokens": 0}, [9, 100]),
        (RPM, {}, [9, 100]),
    ],
)
def test_a_cost_of_zero_is_a_cost(limiter, limits, costs, left):
    """A named 0 names its unit, and a plain 0 is 0 of everything; requests always have a cost."""
    assert limiter.hit(limits, "u", costs)

    assert [state.remaining for state in limiter.peek([RPM, TPM], "u").limits] == left


@pytest.mark.parametrize("costs", [10, {"toks": 10}, {"requests": 1}])
def test_a_settlement_that_limits_in_code_would_not_count_is_an_error(limiter, costs):
    """The estimate stays, and can still be settled."""
    with limiter.admit(TPM, "u", {"tokens": 50}) as admission:
        with pytest.raises(ValueError, match=r"^costs"):
            admission.settle(costs)
        assert limiter.peek(TPM, "u").remaining == 50
        admission.settle({"tokens": 13})

    assert limiter.peek(TPM, "u").remaining == 87


def test_a_settlement_of_zero_gives_everything_back(limiter):
    """0 is 0 of every unit here as well."""
    with limiter.admit([RPM, TPM], "u", {"requests": 2, "tokens": 50}) as admission:
        admission.settle(0)

    assert [state.remaining for state in limiter.peek([RPM, TPM], "u").limits] == [10, 100]


def test_a_peek_answers_for_its_costs(limiter):
    """By default for one permit of each unit, and nothing is charged."""
    limiter.hit([RPM, TPM], "u", {"requests": 4, "tokens": 98})

    assert limiter.peek(TPM, "u")
    assert limiter.peek(TPM, "u", {"tokens": 2})
    assert not limiter.peek(TPM, "u", {"tokens": 3})
    assert limiter.peek(TPM, "u", {"tokens": 101}).reason == "cost_exceeds_capacity"
    assert [limiter.peek(RPM, "u", cost).allowed for cost in (0, 6, 7)] == [True, True, False]
    assert [state.remaining for state in limiter.peek([RPM, TPM], "u", 0).limits] == [6, 2]


def test_a_published_limit_without_a_cost_is_named_and_not_advertised(limiter, world):
    """A client is not promised tokens that nobody counts."""
    token = world.everything(fixed(10), fixed(1_000, name="tpm", unit="tokens"))

    plain, counted, zero = (limiter.check(token, costs) for costs in (1, {"tokens": 5}, {"tokens": 0}))

    assert (plain.unmetered, counted.unmetered, zero.unmetered) == (("tpm",), (), ())
    assert plain.headers("ietf+openai").keys() == {
        *("RateLimit-Policy", "RateLimit"),
        *("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    }
    assert plain.headers()["RateLimit"].startswith('"rpm";r=9')
    assert "tpm" not in plain.headers()["RateLimit"]
    assert '"tpm";r=995' in counted.headers()["RateLimit"]
    assert plain.limit.name == "rpm"


def test_one_policy_at_token_and_project_has_two_names(limiter, world):
    """A client can tell the two limits apart, in both fields and in a denial."""
    secret = mint("live")
    documents = {"global": {"schema": 1, "policy": None}, **world.policy("free", fixed(2)), **world.project("pol_free")}
    world.publish(documents, {secret: world.token("pol_free")})

    admitted, _, denied = (limiter.check(secret) for _ in range(3))

    for field in ("RateLimit", "RateLimit-Policy"):
        names = sorted(item.split(";")[0] for item in admitted.headers()[field].split(", "))
        assert names == ['"project/free/rpm"', '"token/free/rpm"']
    assert denied.problem()["violated-policies"] == ["project/free/rpm", "token/free/rpm"]


@pytest.mark.parametrize("preset", ["ietf", "legacy-delta", "legacy-epoch", "openai", "anthropic"])
def test_a_policy_that_counts_nothing_has_no_header_fields(limiter, world, preset):
    """Nor does a limit decide."""
    token = world.everything(fixed(1_000, name="tpm", unit="tokens"))

    decision = limiter.check(token)

    assert (decision.allowed, decision.limit, decision.remaining, decision.headers(preset)) == (True, None, None, {})


def test_a_denial_leaves_unmetered_limits_out_too(limiter, world):
    """Fresh, and from memory."""
    token = world.everything(fixed(1), fixed(1_000, name="tpm", unit="tokens"))
    limiter.check(token)

    fresh, remembered = limiter.check(token), limiter.check(token)

    assert (fresh.source, remembered.source) == ("store", "denial_cache")
    assert fresh.unmetered == remembered.unmetered == ("tpm",)
    assert "tpm" not in fresh.headers()["RateLimit"] + remembered.headers()["RateLimit"]


def test_an_unmetered_limit_is_logged_once_and_reported(limiter, world, caplog):
    """The heartbeat names it; a limit that gets its cost is not named."""
    caplog.set_level(logging.WARNING, "sluicegate.limiter")
    token = world.everything(fixed(10), fixed(1_000, name="tpm", unit="tokens"), fixed(9, name="m", unit="micros"))
    for _ in range(3):
        limiter.check(token, {"micros": 1})

    assert [record.getMessage() for record in caplog.records if record.name == "sluicegate.limiter"] == [
        "The limit api/tpm counts tokens, but requests give no cost in that unit, so it admits everything."
    ]
    world.publish()  # acknowledged at once, by a heartbeat
    key = Keys().instance("proxy-1")
    assert eventually(lambda: '"unmetered":[["proj_1","api","tpm"]]' in (world.client.get(key) or ""))


def test_a_missing_store_can_stop_the_start(own_server):
    """By both limiters; and a store that has never seen the library is given it."""
    limiter, awaited = Limiter(own_server.url), aio.Limiter(own_server.url)
    limiter.ping()
    asyncio.run(awaited.ping())
    own_server.kill()

    with pytest.raises(StoreError, match="connection"):
        limiter.ping()
    with pytest.raises(StoreError, match="connection"):
        asyncio.run(awaited.ping())
    limiter.close()


@pytest.mark.parametrize("url", ["valkey://127.0.0.1:{}/0", "valkey://127.0.0.1:{}/0?socket_timeout=1"])
def test_a_store_may_be_called_valkey(server, url):
    """By the limiter and by the client of the tools."""
    with contextlib.closing(Limiter(url.format(server.port), timeout=1.0)) as limiter:
        assert limiter.hit(RPM, "u").source == "store"
    assert connect(url.format(server.port)).ping()
    for text in ("valkeys://h:1/2", "valkey+sentinel://h/m", "valkeys+cluster://h1,h2"):
        assert Topology.parse(text).url == text.replace("valkey", "redis")
    with pytest.raises(ValueError, match=r"^url: must begin with redis://"):
        Limiter("valkeyx://h")


@pytest.mark.parametrize("taken", [4, 3])
def test_a_full_limit_of_slots_says_one_second(limiter, taken):
    """A slot may be free at any moment, and its lifetime of an hour says nothing about that."""
    with limiter.admit(SLOTS, "u", taken), pytest.raises(Denied) as denied:
        limiter.open_admission(SLOTS, "u", 2)

    assert (denied.value.decision.retry_after_ms, denied.value.decision.headers()["Retry-After"]) == (1_000, "1")
    free = "all 4 slots are in use" if taken == 4 else "1 slot is free, but the request needs more"
    assert str(denied.value) == f"slots: {free}. Try again in 1 s."
    assert denied.value.decision.problem()["detail"] == str(denied.value)


def test_a_window_that_is_no_integer_says_so():
    """60.0 lies between a second and a year, so that rule alone would puzzle."""
    for window in (60.0, timedelta(minutes=1), "60", True):
        with pytest.raises(InvalidLimit, match=r"^window_seconds: Must be an integer of seconds, got "):
            Limit(name="a", quota=1, window_seconds=window)


def test_the_package_knows_its_names_and_its_version():
    """For completion and help(), although they are loaded later."""
    assert {*enforcement.__all__} <= {*dir(enforcement)}
    assert "class Limiter" in pydoc.plain(pydoc.render_doc(enforcement))
    assert enforcement.__version__ == version("sluicegate")


def test_units_may_have_hyphens():
    """As a policy of a gateway names them."""
    assert Limit(name="a", quota=1, window_seconds=1, unit="image-tokens_2").unit == "image-tokens_2"
    for unit in ("-a", "9a", "a b", "A", "a" * 33, ""):
        with pytest.raises(InvalidLimit, match="unit: Must be 1 to 32 of the characters a-z 0-9 _ - and begin"):
            Limit(name="a", quota=1, window_seconds=1, unit=unit)
