"""Calls with wrong arguments, such as a program in another language may send. Each is refused and writes nothing."""

import itertools
import time
from dataclasses import replace

import pytest
import redis

from enforcement import Limit, Limiter
from enforcement.embedded import ValkeyServer
from enforcement.lua import function
from enforcement.model.algorithms import HOPELESS, Reference
from enforcement.model.sizes import MAX_SLOTS_PER_REQUEST
from enforcement.plan.binding import BoundLimit
from enforcement.store.client import connect, load_library
from enforcement.store.resp import numbers

NOW = 1_767_225_600_000_000
SPECS = {
    "fixed": "f|10|60000000||",
    "durable": "d|10|86400000000||",
    "calendar": "f|10|0|1767222000000000,1767225600000000,1767229200000000,1767232800000000|",
    "rolling": "r|15|10|1767222000000000,1767225600000000,1767229200000000,1767232800000000,490896,360000000000|",
    "kept": "k|15|10|1767222000000000,1767225600000000,1767229200000000,1767232800000000,490896,360000000000|",
    "sliding": "s|10|60000000||",
    "log": "l|10|60000000||",
    "bucket": "b|10|1|6000000|",
    "slots": "c|10|60000000||",
}
SCOPE = "sg:{t}:"
CHANGED, MARKER = f"{SCOPE}changed", f"{SCOPE}m:1"
CENSUS, BEYOND, OVERFLOW = f"{SCOPE}n:1", f"{SCOPE}o:1", f"{SCOPE}c:{9:024x}"
NUMBERS = ["", "abc", "nan", "inf", "-inf", "0.5", "1e308"]
MANY = "1000000000"


@pytest.fixture(scope="module")
def library_client():
    """Give a store that has the function library."""
    with ValkeyServer(persistent=False) as server:
        library_client = connect(server.url, timeout=5.0)
        load_library(library_client)
        yield library_client


@pytest.fixture
def counter(library_client):
    """Give a function that returns the key of a counter in which 4 of 10 are charged."""
    library_client.flushdb()
    library_client.sadd(CHANGED, "whole")
    ids = itertools.count()

    def make(name: str) -> str:
        key = f"{SCOPE}c:{next(ids):024x}"
        call(library_client, "decide", [key, CHANGED], NOW, "1", "owner", SPECS[name], 4)
        return key

    return make


def call(client, verb, keys, *arguments):
    return client.execute_command("FCALL", function(verb), len(keys), *keys, *arguments, NEVER_DECODE=True)


def everything(client):
    """Return what the store has, by key."""
    return {key: client.execute_command("DUMP", key, NEVER_DECODE=True) for key in sorted(client.scan_iter())}


def refused(client, verb, keys, *arguments) -> str:
    """Return the sentence of the refusal. Nothing is written."""
    before = everything(client)
    with pytest.raises(redis.ResponseError) as caught:
        call(client, verb, keys, *arguments)
    assert everything(client) == before, arguments
    return str(caught.value)


@pytest.mark.parametrize("name", SPECS)
def test_a_cost_that_is_no_count_is_refused(library_client, counter, name):
    """A negative or fractional one passed, and "nan" was a wait of three hundred thousand years."""
    keys = [counter("fixed"), counter(name), CHANGED]
    for cost in [*NUMBERS, "-5"]:
        if cost in ("inf", "1e308"):  # more than the capacity, or no integer
            continue
        refused(library_client, "decide", keys, NOW, "1", "", SPECS["fixed"], 1, SPECS[name], cost)


@pytest.mark.parametrize("name", SPECS)
def test_a_decision_without_its_numbers_is_refused(library_client, counter, name):
    """It was a decision about no limit, which admits."""
    key, whole = counter(name), (NOW, "1", "", SPECS[name], 1, SPECS[name])
    for length in range(len(whole)):
        if length != 5:
            assert "arguments" in refused(library_client, "decide", [key], *whole[:length])
    assert numbers(call(library_client, "decide", [], NOW, "1", ""))[0] == 1


@pytest.mark.parametrize(
    "spec",
    [
        "s|10|0||", "l|10|0||", "c|10|0||", "b|10|1|0|", "b|10|1||", "b|10|1|2,3|", "z|1|1||", "f|10|60000000||zzz",
        "r|15|10||", "r|15|10|1,2,3,4,5|", "r|15|10|1,2,2,4,5,6|", "r|15|16|1,2,3,4,5,6|", "k|15|10|1,2,3,4|",
        "f|10|60000000|1,2|", "f|10|0|5,4,3,2|", "f|9007199254740993|60000000||", "f|-1|60000000||", "f|10", "",
    ],
)  # fmt: skip
def test_a_limit_that_would_limit_nothing_is_refused(library_client, counter, spec):
    """A window of length 0 admitted everything."""
    key = counter("fixed")
    for _ in range(2):  # not kept as if it were one
        assert "limit: must be" in refused(
            library_client, "decide", [key, f"{SCOPE}c:new"], NOW, "1", "", SPECS["fixed"], 1, spec, 1
        )


@pytest.mark.parametrize("name", SPECS)
def test_a_settlement_is_whole_or_nothing(library_client, counter, name):
    """It gave back the first counter, remembered the id and failed, so that the rest was never given back."""
    keys, first = [MARKER, counter("fixed"), counter(name), CHANGED], (SPECS["fixed"], -1, NOW + 60_000_000)
    for wrong in NUMBERS:
        for row in ((wrong, NOW), (-1, wrong)):
            if row[1] == "1e308":
                continue
            refused(library_client, "settle", keys, NOW, 1_000, "owner", *first, SPECS[name], *row)
    for missing in (1, 2, 4):
        arguments = (NOW, 1_000, "owner", *first, SPECS[name], -1, NOW)
        refused(library_client, "settle", keys, *arguments[:-missing])


def test_nobody_can_keep_the_store_busy_with_slots(library_client, counter):
    """A thousand million slots kept it busy for minutes."""
    key = counter("slots")
    spec = "c|9007199254740991|60000000||"
    for permits in (MANY, f"-{MANY}", "inf"):
        refused(library_client, "settle", [MARKER, key], NOW, "", "owner", spec, permits, 0)
    for slots in (MANY, "inf", "nan", ""):
        refused(library_client, "renew", [key], NOW, "owner", slots, 60_000_000, 10, "", 0)
    refused(library_client, "renew", [key, key], NOW, "owner", 1, 60_000_000, 10, "", 0, 1, 60_000_000, 10, "")


def test_a_request_takes_at_most_ten_thousand_slots(library_client, counter):
    """Whatever the quota is. The limit can have more slots than that."""
    key, spec, reply = f"{SCOPE}c:{7:024x}", "c|25000|60000000||", []
    for cost in (MAX_SLOTS_PER_REQUEST + 1, MAX_SLOTS_PER_REQUEST, MAX_SLOTS_PER_REQUEST):
        reply.append(numbers(call(library_client, "decide", [key], NOW, "1", f"i{len(reply)}", spec, cost)))
    assert [(row[0], row[2], row[4]) for row in reply] == [(0, 25_000, -1), (1, 15_000, 0), (1, 5_000, 0)]


def test_a_call_takes_at_most_ten_thousand_slots_of_all_its_limits(library_client, counter):
    """A call with a hundred limits held the store for four seconds. The store and the local decision say the same."""
    keys, spec = [f"{SCOPE}c:{n:024x}" for n in range(100)], "c|9007199254740991|60000000||"
    before = everything(library_client)
    reply = numbers(call(library_client, "decide", keys, NOW, "1", "", *[spec, MAX_SLOTS_PER_REQUEST] * 100))
    assert everything(library_client) == before
    assert (reply[0], reply[4], reply[8], reply[-2]) == (0, 0, HOPELESS, HOPELESS)

    limit = Limit(name="in-flight", algorithm="concurrency", quota=25_000, window_seconds=60)
    shadow = replace(limit, mode="shadow")
    for first, second, passes in ((limit, limit, False), (limit, shadow, True), (shadow, limit, False)):
        specs = [BoundLimit(it, "", "code").spec(NOW) for it in (first, second)]
        charges = list(zip(keys, specs, (4_000, 6_001), strict=False))
        there = call(library_client, "decide", keys[:2], NOW, "1", "i", specs[0].text, 4_000, specs[1].text, 6_001)
        here = Reference().decide(NOW, charges, ident="i")
        assert (here[0], here[9]) == (passes, HOPELESS)
        assert list(numbers(there)) == here
        library_client.delete(*keys)


def test_a_correction_or_a_renewal_moves_at_most_ten_thousand_slots(library_client, counter):
    """A lease moves none: one of a thousand million permits kept the store busy for minutes."""
    keys, spec = [counter("slots"), counter("slots")], "c|9007199254740991|60000000||"
    for permits in (5_001, -5_001):
        rows = [spec, permits, 0] * 2
        assert "slots: must be at most 10000 in one call" in refused(
            library_client, "settle", [MARKER, *keys], NOW, "", "owner", *rows
        )
    assert "slots" in refused(library_client, "renew", keys, NOW, "owner", *[5_001, 60_000_000, 10, "", 0] * 2)
    assert "must not count slots" in refused(library_client, "lease", keys[:1], NOW, MANY, 1, spec)


@pytest.mark.parametrize(("verb", "step"), [("decide", 2), ("settle", 3), ("lease", 1)])
def test_a_call_has_at_most_a_thousand_limits(library_client, counter, verb, step):
    """What a call remembers of each of its limits is kept for later calls."""
    head = {"decide": ("1", ""), "settle": ("", "owner"), "lease": (1, 1)}[verb]
    rows = [SPECS["fixed"], *["0"] * (step - 1)] * 1_001
    said = refused(library_client, verb, [counter("fixed")] * 1_001, NOW, *head, *rows)
    assert "limits: must be at most 1000 in one call" in said


def test_a_call_sees_to_ten_thousand_late_slots(library_client, counter):
    """An account filled its own counter with slots of next year, and one call read them a thousand times."""
    key, spec, year_us = f"{SCOPE}c:{8:024x}", "c|99999|60000000||", 365 * 86_400_000_000
    library_client.zadd(key, {f"i:{n}:60000000": NOW + year_us for n in range(MAX_SLOTS_PER_REQUEST + 5)})
    late = []
    for _ in range(2):
        call(library_client, "decide", [key] * 2, NOW, "1", "", *[spec, 0] * 2)
        late.append(library_client.zcount(key, NOW + 60_000_001, "+inf"))
    assert late == [5, 0]


def test_a_costly_request_is_denied_and_keeps_nobody_waiting(server):
    """A cost of a million tokens in flight stopped the store for eleven seconds, and all its clients with it."""
    limit = Limit(name="in-flight", algorithm="concurrency", quota=10**9, window_seconds=60, unit="tokens")
    with Limiter(server.url, timeout=5.0) as limiter:
        limiter.hit(Limit.parse("100/minute"), "warm")
        began = time.monotonic()
        decision = limiter.peek(limit, "user:1", costs={"tokens": 10**6})
        with (
            pytest.raises(Exception, match="can admit 10000 tokens at once") as denied,
            limiter.admit(limit, "user:1", costs={"tokens": 10**6}),
        ):
            pass
        assert time.monotonic() - began < 2.0
    assert (decision.allowed, decision.reason) == (False, "cost_exceeds_capacity")
    assert denied.value.decision.source == "store"


@pytest.mark.parametrize("verb", ["enrol", "enrol_settle"])
def test_values_without_their_numbers_are_refused(library_client, counter, verb):
    """A charge was made, and its value was not registered."""
    key = counter("sliding")
    bodies = {
        "enrol": ([key], (NOW, "1", "", SPECS["sliding"], 1)),
        "enrol_settle": ([MARKER, key], (NOW, 1_000, "owner", SPECS["sliding"], -1, NOW)),
    }
    keys, body = bodies[verb]
    value = (len(keys), "value", 100, 60_000_000)
    for at, wrong in itertools.product((0, 2, 3), [*NUMBERS, "-5"]):
        if (at, wrong) in {(2, "0.5"), (2, "inf"), (2, "1e308")}:  # a cap that says the same
            continue
        changed = [*value[:at], wrong, *value[at + 1 :], ""]
        refused(library_client, verb, [CENSUS, BEYOND, OVERFLOW, *keys], 1, *changed, *body)
    for count in [*NUMBERS, "0", "-1", "2"]:
        refused(library_client, verb, [CENSUS, BEYOND, OVERFLOW, *keys], count, *value, "", *body)


@pytest.mark.parametrize("wrong", [*NUMBERS, "0", "-5"])
def test_a_lease_of_no_permits_is_refused(library_client, counter, wrong):
    """Half a permit was charged and none was granted."""
    key = counter("fixed")
    if wrong != "1e308":
        refused(library_client, "lease", [key], NOW, wrong, 2, SPECS["fixed"])
    if wrong not in ("1e308", "inf"):
        refused(library_client, "lease", [key], NOW, 3, wrong, SPECS["fixed"])


RESERVATION = [f"{SCOPE}reservations", f"{SCOPE}r:1"]


@pytest.mark.parametrize("wrong", ["", "abc", "nan", "inf", "-inf", "1e308", "0", "-5", "604800000001"])
def test_a_reservation_without_a_life_is_refused(library_client, counter, wrong):
    keys, decision = [*RESERVATION, counter("fixed")], ["", NOW, "1", "1", SPECS["fixed"], 1]
    assert "life" in refused(library_client, "reserve", keys, "1", wrong, 10, "{}", *decision)
    assert "life" in refused(library_client, "prolong", keys[:1], NOW, "1", wrong)


@pytest.mark.parametrize("wrong", ["", "abc", "nan", "-5"])
def test_a_reservation_without_a_bound_is_refused(library_client, counter, wrong):
    keys, decision = [*RESERVATION, counter("fixed")], ["", NOW, "1", "1", SPECS["fixed"], 1]
    assert "most" in refused(library_client, "reserve", keys, "1", 1_000, wrong, "{}", *decision)


@pytest.mark.parametrize("name", SPECS)
def test_a_reservation_with_a_wrong_cost_is_refused_and_leaves_no_record(library_client, counter, name):
    keys = [*RESERVATION, counter("fixed"), counter(name), CHANGED]
    refused(
        library_client, "reserve", keys, "1", 1_000, 10, "{}", "", NOW, "1", "1", SPECS["fixed"], 1, SPECS[name], "-1"
    )


@pytest.mark.parametrize("name", SPECS)
def test_a_wrong_settlement_leaves_the_reservation_open(library_client, counter, name):
    key = counter(name)
    call(
        library_client, "reserve", [*RESERVATION, key, CHANGED], "1", 1_000, 10, "{}", "", NOW, "1", "1", SPECS[name], 1
    )
    for wrong in ["", "abc", "nan", "0.5"]:
        keys, settling = [*RESERVATION, MARKER, key, CHANGED], [NOW, "", "1", SPECS[name], wrong, NOW]
        refused(library_client, "conclude", keys, "1", *settling)
        refused(library_client, "conclude_open", keys, "1", "", *settling)
    assert library_client.exists(RESERVATION[1])


@pytest.mark.parametrize("wrong", ["abc", "nan", "0.5"])
def test_a_settlement_of_what_was_open_at_no_instant_is_refused(library_client, counter, wrong):
    key, spec = counter("fixed"), SPECS["fixed"]
    call(library_client, "reserve", [*RESERVATION, key], "1", 1_000, 10, "{}", "", NOW, "1", "1", spec, 1)
    keys = [*RESERVATION, MARKER, key]
    assert "at: must be an instant" in refused(
        library_client, "conclude_open", keys, "1", wrong, NOW, "", "1", spec, -1, NOW
    )


@pytest.mark.parametrize(
    "text",
    [f"f|10|0|{','.join(map(str, range(10**15, 10**15 + 99)))}|", f"f|{'0' * 999}9|60000000||"],
    ids=["numbers", "zeros"],
)
def test_a_limit_of_very_many_characters_is_refused(library_client, text):
    """The library keeps the limits of earlier calls, and nothing else bounds its memory."""
    assert "limit" in refused(library_client, "decide", [f"{SCOPE}c:1"], "", "0", "", text, "0")


def test_calls_with_very_many_limits_leave_nothing_in_the_memory_of_functions(library_client):
    """Each with another number of them: their replies were kept, until the store had no memory left."""

    def used() -> int:
        return library_client.info("memory")["used_memory_vm_functions"]

    def ask(count: int) -> None:
        call(library_client, "decide", [f"{SCOPE}c:1"] * count, "", "0", "", *[SPECS["fixed"], "0"] * count)

    library_client.flushdb()
    ask(1_000)
    before = used()
    for count in range(900, 1_000, 4):
        ask(count)

    assert used() - before < 1_000_000
