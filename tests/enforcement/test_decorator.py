"""Limits on plain functions, and waiting for permits."""

import asyncio
import inspect
import threading
import time
from types import SimpleNamespace
from uuid import UUID

import pytest

from enforcement import Denied, InvalidLimit, Limit, aio
from enforcement.decorator import declared, key_text

A_UUID = UUID("12345678-1234-5678-1234-567812345678")
ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)


def outcomes(function, *calls):
    """Return what each call returned, or the reason of its denial."""
    found = []
    for args in calls:
        try:
            found.append(function(*args))
        except Denied as denied:
            found.append(denied.decision.reason)
    return found


def test_each_key_has_its_own_count(limiter):
    """A key in text is a format of the arguments, attributes included, however they are passed."""

    @limiter.limited("1/hour", key="user:{user.real}")
    def send(text, user=7):
        return text

    assert outcomes(send, ("a",), ("b", 7), ("c", 8)) == ["a", "limited", "c"]


def test_without_a_key_all_calls_count_together(limiter):
    """And functions of one name in different places do not."""

    @limiter.limited("1/hour")
    def send(text):
        return text

    assert outcomes(send, ("a",), ("b",)) == ["a", "limited"]
    assert limiter.peek(declared("1/hour"), f"{__name__}.{send.__qualname__}").remaining == 0


def test_a_decorated_function_stays_what_it_was(limiter):
    """Name, documentation and signature are those of the function."""

    @limiter.limited("1/hour", key="{user}")
    def send(user: int, text: str = "") -> str:
        """Send."""
        return text

    assert (send.__name__, send.__doc__) == ("send", "Send.")
    assert list(inspect.signature(send).parameters) == ["user", "text"]


def test_a_key_function_gets_the_arguments(limiter):
    """What it returns is the key: text, number, UUID; None stands for no limit."""

    @limiter.limited("1/hour", key=lambda user: user)
    def send(user):
        return "sent"

    calls = (7,), ("7",), (A_UUID,), (str(A_UUID),), (None,), (None,)
    assert outcomes(send, *calls) == ["sent", "limited", "sent", "limited", "sent", "sent"]


@pytest.mark.parametrize("key", ["user:{user}", "user:{user!r}", "user:{user.imag.nothing}", "{user:>9}"])
def test_none_in_a_format_is_an_error(limiter, key):
    """All anonymous callers would be one; a function says that they have no limit."""
    inside = SimpleNamespace(imag=SimpleNamespace(nothing=None))
    send = limiter.limited("1/hour", key=key)(lambda user: "sent")

    with pytest.raises(ValueError, match=r"^key: user.* must not be None\. .* use a function that returns None"):
        send(inside if "nothing" in key else None)


@pytest.mark.parametrize("key", [1.5, True, b"x", object()], ids=["fraction", "bool", "bytes", "object"])
def test_a_key_that_is_no_key_is_an_error(limiter, key):
    """A caller who could be anybody is not counted as somebody."""
    send = limiter.limited("1/hour", key=lambda key: key)(lambda key: "sent")

    with pytest.raises(TypeError, match="key: must be a string"):
        send(key)


@pytest.mark.parametrize("key", ["", "x" * 1025], ids=["empty", "long"])
def test_a_key_of_no_usable_length_is_an_error(limiter, key):
    """As it is for hit."""
    send = limiter.limited("1/hour", key=lambda key: key)(lambda key: "sent")

    with pytest.raises(ValueError, match="key: must be a string of 1 to 1024 characters"):
        send(key)


def test_costs_may_depend_on_the_arguments(limiter):
    """Several limits in one text are one decision: the call that breaks one is charged to none."""

    @limiter.limited("100/hour; 5/minute", key="batch", costs=lambda items: len(items), scope="mail")
    def send(items):
        return len(items)

    assert outcomes(send, ([1, 2, 3],), ([1, 2, 3],), ([1, 2],)) == [3, "limited", 2]
    assert limiter.peek(declared("100/hour"), "mail:batch").remaining == 95


def test_a_call_that_fails_was_made(limiter):
    """It stays charged, and its slot is free."""
    limits = [Limit(name="calls", quota=5, window_seconds=3600), ONE_SLOT]

    @limiter.limited(limits, key="jobs", scope="work")
    def fail():
        raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fail()
    states = {state.name: state.remaining for state in limiter.peek(limits, "work:jobs").limits}
    assert states == {"calls": 3, "slots": 1}


def test_a_slot_is_held_while_the_function_runs(limiter):
    """The second call at the same time is denied, the one after it passes."""
    entered, go = threading.Event(), threading.Event()

    @limiter.limited(ONE_SLOT, key="jobs")
    def work(wait):
        entered.set()
        assert not wait or go.wait(10)
        return "done"

    worker = threading.Thread(target=work, args=(True,))
    worker.start()
    assert entered.wait(10)
    first = outcomes(work, (False,))
    go.set()
    worker.join(10)
    assert first + outcomes(work, (False,)) == ["limited", "done"]


def test_whoever_may_wait_is_served_later(limiter):
    """Permits that come within max_wait are waited for, and the wait is as long as it has to be."""
    limit = Limit(name="drip", algorithm="token_bucket", quota=5, window_seconds=1, burst=1)
    began = time.monotonic()

    decisions = [limiter.acquire(limit, "drip", max_wait=10) for _ in range(3)]

    assert [decision.allowed for decision in decisions] == [True] * 3
    assert time.monotonic() - began >= 0.39


@pytest.mark.parametrize(
    ("limit", "costs", "reason"),
    [
        (Limit(name="slow", quota=1, window_seconds=3600, algorithm="token_bucket"), 1, "limited"),
        (Limit(name="small", quota=1, window_seconds=3600), 2, "cost_exceeds_capacity"),
    ],
    ids=["too-late", "never"],
)
def test_whoever_would_wait_in_vain_is_denied_at_once(limiter, limit, costs, reason):
    """Nobody sleeps until the end of max_wait to hear what was known before."""
    limiter.hit(limit, "vain")
    began = time.monotonic()

    with pytest.raises(Denied) as caught:
        limiter.acquire(limit, "vain", costs, max_wait=600)

    assert caught.value.decision.reason == reason
    assert time.monotonic() - began < 5


def tier(user):
    """Return the limits of a user, or None for one without."""
    return {"gold": ["3/hour", "9/day"], "house": None}.get(user, "1/hour")


async def test_limits_may_be_a_function_of_the_arguments(limiter, aio_limiter):
    """They are chosen for each call; None stands for no limit."""
    send = limiter.limited(tier, key="{user}")(lambda user: "sent")

    @aio_limiter.limited(tier, key="awaited:{user}")
    async def send_awaited(user):
        return "sent"

    assert outcomes(send, *[("silver",)] * 2) == ["sent", "limited"]
    assert outcomes(send, *[("gold",)] * 4) == ["sent"] * 3 + ["limited"]
    assert outcomes(send, *[("house",)] * 5) == ["sent"] * 5
    await send_awaited("silver")
    with pytest.raises(Denied, match="1-per-hour has 0 of 1 requests left"):
        await send_awaited("silver")


def test_limits_that_were_chosen_wrongly_are_an_error_of_the_call(limiter):
    """Nothing runs unlimited by mistake."""
    for wrong, error, rule in (
        ("10/fortnight", InvalidLimit, "The period must be"),
        (7, TypeError, "limits: must be strings or Limit values, got 7"),
        ([], ValueError, "limits: must be 1 to 64"),
    ):
        send = limiter.limited(lambda user, wrong=wrong: wrong, key="{user}")(lambda user: "sent")
        with pytest.raises(error, match=rule):
            send("ann")


def test_limits_may_have_keys_of_their_own(limiter):
    """They decide together; one whose key is None does not apply."""
    pairs = [("2/hour", "ip:{ip}"), ("3/hour", lambda ip: None if ip == "house" else "all")]
    send = limiter.limited(pairs, scope="mail")(lambda ip: "sent")

    assert outcomes(send, ("a",), ("a",), ("a",), ("b",), ("b",)) == ["sent", "sent", "limited", "sent", "limited"]
    assert limiter.peek(declared("2/hour"), "mail:ip:b").remaining == 1
    assert outcomes(send, ("house",), ("house",), ("house",)) == ["sent", "sent", "limited"]


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ({"limits": [("2/hour", "ip:{ip}"), ("2/hour", "all")]}, "limits: names must be unique"),
        ({"limits": [("2/hour", "ip:{ip}")], "key": "all"}, "key: must be None, because the pairs have their own keys"),
        ({"limits": [("2/hour", "ip:{ip}"), "3/hour"]}, "limits: must all be pairs of limits and a key"),
        ({"limits": [("2/hour", "ip:{ip}", 1)]}, "limits: must all be pairs of limits and a key"),
    ],
)
def test_pairs_that_make_no_sense_are_refused_when_they_are_declared(limiter, declaration, message):
    """Not by the first call."""
    with pytest.raises(ValueError, match=message):
        limiter.limited(**declaration)(lambda ip: "sent")


@pytest.mark.parametrize(
    "max_wait", [-1, float("inf"), float("nan"), pytest.param(10**5_000, id="huge"), True, False, "5", None]
)
async def test_a_wait_that_is_no_span_is_refused(limiter, aio_limiter, max_wait):
    """Waiting for ever is not waiting. Nothing is charged."""
    for call in (
        lambda: limiter.acquire(ONE_SLOT, "wait", max_wait=max_wait),
        lambda: limiter.open_admission(ONE_SLOT, "wait", max_wait=max_wait),
        lambda: limiter.limited(ONE_SLOT, max_wait=max_wait)(print),
    ):
        with pytest.raises(ValueError, match="max_wait: must be seconds"):
            call()
    for call in (aio_limiter.acquire, aio_limiter.open_admission):
        with pytest.raises(ValueError, match="max_wait: must be seconds"):
            await call(ONE_SLOT, "wait", max_wait=max_wait)
    assert limiter.peek(ONE_SLOT, "wait").remaining == 1


@pytest.mark.parametrize(
    ("declaration", "error", "names"),
    [
        ({"limits": "10/fortnight"}, InvalidLimit, "text"),
        ({"limits": "10/minute; 10/minute"}, ValueError, "limits: names must be unique"),
        ({"limits": []}, ValueError, "limits: must be 1 to"),
        ({"limits": [5]}, TypeError, "limits: must be strings or Limit values"),
        ({"limits": Limit(quota=1, window_seconds=1, partition_by=("ip",))}, ValueError, "must not need attributes"),
        ({"limits": print}, TypeError, "limits: must be strings or Limit values"),
        ({"key": "user:{usr}"}, ValueError, "key: must name parameters of .*, got 'usr'"),
        ({"key": "user:{user"}, ValueError, "key: must be a format, got 'user:{user'"),
        ({"key": 7}, TypeError, "key: must be a format"),
        ({"costs": -1}, ValueError, "costs: must be an integer"),
        ({"max_wait": -1}, ValueError, "max_wait: must be seconds"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_when_it_is_made(limiter, declaration, error, names):
    """Not by the first call in production; the text names the argument."""
    with pytest.raises(error, match=names):
        limiter.limited(**{"limits": "10/minute", **declaration})(lambda user: user)


async def test_a_decorator_without_its_limits_is_refused_at_once(limiter, aio_limiter):
    """``@limiter.limited`` and nothing more would replace the function by a decorator."""
    for one in (limiter, aio_limiter):
        with pytest.raises(TypeError, match="limits: must be strings or Limit values, got <function"):
            one.limited(lambda user: user)


def test_a_slot_cannot_be_held_by_a_generator(limiter):
    """Its function returns before its first item; that would be a limit of nothing."""

    def items():
        yield 1

    with pytest.raises(ValueError, match="generator"):
        limiter.limited(ONE_SLOT)(items)


async def test_a_coroutine_function_is_limited_too(aio_limiter):
    """The same names, awaited; the slot is free after a cancellation."""

    @aio_limiter.limited(ONE_SLOT, key="job:{number}", scope="work")
    async def work(number, seconds=0):
        await asyncio.sleep(seconds)
        return number

    long = asyncio.ensure_future(work(1, 600))
    while (await aio_limiter.peek(ONE_SLOT, "work:job:1")).remaining:
        await asyncio.sleep(0.005)
    with pytest.raises(Denied):
        await work(1)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert await work(1) == 1


async def test_a_task_that_waits_can_be_cancelled(aio_limiter):
    """It is charged nothing, and the loop goes on while it waits."""
    limit = Limit(name="slow", algorithm="token_bucket", quota=1, window_seconds=60)
    await aio_limiter.hit(limit, "cancel")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(aio_limiter.acquire(limit, "cancel", max_wait=600), 0.05)
    assert (await aio_limiter.peek(limit, "cancel")).remaining == 0


async def test_asyncio_callers_wait_side_by_side(aio_limiter):
    """Each gets its permit in its time."""
    limit = Limit(name="drip", algorithm="token_bucket", quota=20, window_seconds=1, burst=1)

    decisions = await asyncio.gather(*(aio_limiter.acquire(limit, "side", max_wait=10) for _ in range(4)))

    assert all(decision.allowed for decision in decisions)


def test_each_limiter_decorates_its_own_kind(limiter, server):
    """A coroutine function behind a limiter for threads would block its loop."""

    async def work(): ...

    with pytest.raises(TypeError, match=r"work: must not be asynchronous\. Use an enforcement\.aio\.Limiter"):
        limiter.limited("1/second")(work)
    with pytest.raises(TypeError, match="must be a coroutine function"):
        aio.Limiter(server.url).limited("1/second")(lambda: None)


def test_what_a_key_may_be():
    """Booleans are numbers in Python, and no keys here."""
    assert [key_text(value) for value in ("a", "", 7, A_UUID, None)] == ["a", "", "7", str(A_UUID), None]
