"""Header presets and problem documents of a decision."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcement import Limit, Limiter
from enforcement.plan import headers
from enforcement.plan.binding import BoundLimit
from enforcement.plan.decision import Decision
from enforcement.plan.error_shapes import retry_fields
from enforcement.plan.plan import Plan
from enforcement.plan.reply import Reply

MINUTE, NOW = 60_000_000, 1_767_225_600_000_000
REQUESTS = Limit(name="rpm", quota=60, window_seconds=60)
TOKENS = Limit(name="tpm", quota=150_000, window_seconds=3_600, unit="tokens")
SHADOW = Limit(name="trial", quota=1, window_seconds=60, mode="shadow")


def decision(allowed, *rows, reason=None):
    """Return a decision of limits with (remaining, reset, wait, more)."""
    bounds = tuple(BoundLimit(limit, f"{{k}}:{i}", "token", "pol", slug) for i, (limit, slug, _) in enumerate(rows))
    reply = [int(allowed), NOW, *(number for row in rows for number in row[2])]
    return Decision(allowed, reason or ("ok" if allowed else "limited"), "store", Plan(bounds), Reply(reply))


def test_openai_headers_speak_of_requests_and_tokens():
    """Durations as Go spells them."""
    rows = (REQUESTS, "p", [59, 1_000_000, 0, 1_000_000]), (TOKENS, "p", [149_984, 360_000_000, 0, 1])
    assert decision(True, *rows).headers("openai") == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
    }


def test_legacy_headers_give_seconds_or_an_instant():
    """Both may be joined with the standard's own, and Retry-After goes with each."""
    denied = decision(False, (REQUESTS, "p", [0, 11_200_000, 11_200_000, 11_200_000]))

    assert denied.headers("legacy-delta")["X-RateLimit-Reset"] == "12"
    assert denied.headers("legacy-epoch")["X-RateLimit-Reset"] == "1767225612"
    assert denied.headers("ietf+legacy-delta").keys() >= {
        "RateLimit",
        "RateLimit-Policy",
        "X-RateLimit-Limit",
        "Retry-After",
    }


@pytest.mark.parametrize("preset", ["github", "", None, 5])
def test_an_unknown_preset_is_an_error(preset):
    """It names those that there are."""
    with pytest.raises(ValueError, match="preset: must be one of ietf"):
        decision(True, (REQUESTS, "p", [1, 1, 0, 1])).headers(preset)


def test_shadows_decide_nothing_and_show_nowhere():
    """Their states are there for whoever looks."""
    watched = decision(True, (SHADOW, "p", [0, MINUTE, MINUTE, MINUTE]))

    assert watched.limit is None
    assert watched.headers() == {}
    assert not watched.limits[0].allowed


def test_limits_of_one_name_are_told_apart_by_their_policies():
    """A client sees no name twice."""
    rows = (REQUESTS, "all", [0, MINUTE, MINUTE, MINUTE]), (REQUESTS, "own", [3, MINUTE, 0, MINUTE])
    denied = decision(False, *rows)

    assert denied.headers()["RateLimit"] == '"all/rpm";r=0;t=60, "own/rpm";r=3;t=60'
    assert denied.problem()["violated-policies"] == ["all/rpm"]


def test_one_policy_at_token_and_project_is_told_apart_by_what_it_is_attached_to():
    """In both fields, and in the body; another limit keeps its short name."""
    numbers = [0, MINUTE, MINUTE, MINUTE]
    bounds = (
        BoundLimit(REQUESTS, "{k}:0", "project", "pol", "free"),
        BoundLimit(REQUESTS, "{k}:1", "token", "pol", "free"),
        BoundLimit(TOKENS, "{k}:2", "token", "pol", "free"),
    )
    denied = Decision(False, "limited", "store", Plan(bounds), Reply([0, NOW, *numbers, *numbers, *numbers]))

    labels = ["project/free/rpm", "token/free/rpm", "tpm"]
    for field in ("RateLimit", "RateLimit-Policy"):
        assert sorted(item.split(";")[0] for item in denied.headers()[field].split(", ")) == sorted(
            f'"{label}"' for label in labels
        )
    assert sorted(denied.problem()["violated-policies"]) == sorted(labels)


def test_anthropic_headers_give_an_instant():
    """As RFC 3339, rounded up; no end of a lifetime is invented."""
    rows = (REQUESTS, "p", [59, 1_500_000, 0, 1]), (TOKENS, "p", [149_984, -2, 0, -2])
    assert decision(True, *rows).headers("anthropic") == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "59",
        "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:02Z",
        "anthropic-ratelimit-tokens-limit": "150000",
        "anthropic-ratelimit-tokens-remaining": "149984",
    }


FULL = decision(False, (TOKENS, "p", [0, MINUTE, MINUTE, MINUTE]))
FULL_TEXT = "tpm has 0 of 150000 tokens left. Try again in 60 s."
REVOKED = Decision(False, "revoked", "documents")
RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo"}
AWAY = decision(False, (REQUESTS, "p", [0, 0, -2, 0]), reason="degraded_denied")


@pytest.mark.parametrize(
    ("denied", "kind", "code", "message"),
    [
        (FULL, "tokens", "rate_limit_exceeded", FULL_TEXT),
        (REVOKED, "invalid_request_error", "invalid_api_key", "The token was revoked."),
        (AWAY, "server_error", "degraded_denied", "The limit cannot be checked now. Try again in 1 s."),
    ],
)
def test_a_denial_has_the_shape_of_openai_if_the_preset_says_so(denied, kind, code, message):
    """So that its SDK shows the sentence."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    assert denied.problem("ietf+openai") == {"error": error}


@pytest.mark.parametrize(
    ("denied", "kind", "message"),
    [
        (FULL, "rate_limit_error", FULL_TEXT),
        (REVOKED, "authentication_error", "The token was revoked."),
        (AWAY, "api_error", "The limit cannot be checked now. Try again in 1 s."),
    ],
)
def test_a_denial_has_the_shape_of_anthropic_if_the_preset_says_so(denied, kind, message):
    """The same."""
    assert denied.problem("anthropic") == {"type": "error", "error": {"type": kind, "message": message}}


@pytest.mark.parametrize(
    ("denied", "code", "status", "message", "details"),
    [
        (FULL, 429, "RESOURCE_EXHAUSTED", FULL_TEXT, {"details": [{**RETRY_INFO, "retryDelay": "60.000s"}]}),
        (REVOKED, 401, "UNAUTHENTICATED", "The token was revoked.", {}),
    ],
)
def test_a_denial_has_the_shape_of_gemini_if_the_preset_says_so(denied, code, status, message, details):
    """Google's clients read the wait from the body. There are no header fields for it."""
    assert denied.problem("gemini") == {"error": {"code": code, "message": message, "status": status, **details}}
    assert decision(True, (TOKENS, "p", [5, MINUTE, 0, 0])).headers("gemini") == {}


@pytest.mark.parametrize(
    ("left", "currency", "message"),
    [
        (1_500_000, "USD", "budget has 1.50 of 1,234.5678 USD left. Try again in 60 s."),
        (0, "", "budget has 0.00 of 1,234.5678 units of money left. Try again in 60 s."),
        (None, "EUR", "budget can admit 1,234.5678 EUR at once, but the request costs more."),
    ],
)
def test_a_denial_says_what_is_left_of_money_as_an_amount(left, currency, message):
    """People read it. The state of the limit stays in millionths."""
    limit = Limit(name="budget", quota=1_234_567_800, window_seconds=60, unit="micros")
    numbers = [limit.quota, MINUTE, -1, 0] if left is None else [left, MINUTE, MINUTE, MINUTE]
    denied = decision(False, (limit, "p", numbers)).counting(currency)

    assert denied.problem()["detail"] == message
    assert pickle.loads(pickle.dumps(denied)).problem()["detail"] == message
    assert denied.limit.quota == limit.quota


def test_an_sdk_is_told_to_try_again_within_a_minute_only():
    """It would sleep until the budget of the next month, or ask again in vain."""
    assert retry_fields("ietf+openai", 1_500) == [("retry-after-ms", "1500")]
    assert retry_fields("anthropic", 60_000) == [("retry-after-ms", "60000")]
    assert retry_fields("anthropic", 60_001) == retry_fields("openai", None) == [("x-should-retry", "false")]
    assert retry_fields("ietf", 1_500) == retry_fields("gemini", None) == []


def test_a_lifetime_has_neither_a_length_nor_a_reset():
    """No wait helps, and nothing says that one would."""
    limit = Limit(name="trial", quota=5, calendar="lifetime")
    denied = decision(False, (limit, "p", [0, -2, -2, -2]))

    assert (denied.retry_after_ms, denied.reset_ms, denied.reason) == (None, None, "limited")
    assert denied.headers() == {"RateLimit-Policy": '"trial";q=5', "RateLimit": '"trial";r=0'}


@pytest.mark.usefixtures("no_documents")
def test_a_quota_of_zero_promises_no_time(server):
    """Nothing will ever be available: a client that is told "0 left, more in 0 s" asks again at once."""
    now = NOW
    with Limiter(server.url, clock=lambda: now, timeout=2.0) as limiter:
        for algorithm in ("fixed_window", "sliding_window", "sliding_log", "token_bucket"):
            limit = Limit(name="off", algorithm=algorithm, quota=0, window_seconds=60)
            assert limiter.hit(limit, algorithm).headers()["RateLimit"] == '"off";r=0'
            assert limiter.hit(limit, algorithm, costs=0).headers()["RateLimit"] == '"off";r=0'


@pytest.mark.parametrize("order", [1, -1])
def test_equal_deniers_are_told_apart_as_those_that_admit(order):
    """Of one wait the least share decides, then the longer window, in whatever order they were given."""
    hour = Limit(name="hour", quota=60, window_seconds=3_600)
    rows = [(REQUESTS, "p", [0, MINUTE, MINUTE, MINUTE]), (hour, "p", [0, MINUTE, MINUTE, MINUTE])][::order]
    assert decision(False, *rows).limit.name == "hour"

    rows = [(REQUESTS, "p", [0, MINUTE, MINUTE, MINUTE]), (hour, "p", [1, MINUTE, MINUTE, MINUTE])][::order]
    assert decision(False, *rows).limit.name == "rpm"


def test_slots_last_as_long_as_they_live():
    """Where as much is left of slots as of a rate, the lifetime of a slot is compared with the window."""
    slots = Limit(name="slots", algorithm="concurrency", quota=60, window_seconds=30)
    both = decision(True, (slots, "p", [30, 0, 0, 0]), (REQUESTS, "p", [30, MINUTE, 0, MINUTE]))

    assert both.limit.name == "rpm"
    assert both.headers()["RateLimit"] == '"rpm";r=30;t=60, "slots";r=30'


def test_a_token_that_is_refused_is_no_rate_limit():
    """401, no limits, no wait."""
    refused = Decision(False, "revoked", "documents")

    assert refused.headers() == {}
    assert refused.problem() == {
        "type": "about:blank",
        "title": "The token was revoked",
        "status": 401,
        "code": "revoked",
    }


COMMON = {
    "name": st.sampled_from(["a", "b", "c", "d"]),
    "quota": st.integers(0, 50),
    "unit": st.sampled_from(["requests", "tokens"]),
    "mode": st.sampled_from(["enforce", "enforce", "shadow"]),
}
ALGORITHMS = st.sampled_from(["fixed_window", "sliding_window", "concurrency"])
PLAIN_LIMITS = st.builds(Limit, window_seconds=st.sampled_from([1, 60, 3_600]), algorithm=ALGORITHMS, **COMMON)
CALENDAR_LIMITS = st.builds(Limit, calendar=st.sampled_from(["hour", "day", "month", "lifetime"]), **COMMON)
LIMITS = PLAIN_LIMITS | CALENDAR_LIMITS
NUMBERS = st.tuples(st.integers(-3, 50), st.integers(-2, 10**9), st.just(0), st.integers(-2, 10**9))


@given(st.lists(st.tuples(LIMITS, st.sampled_from(["p", "q"]), NUMBERS), min_size=1, max_size=4))
def test_fields_made_of_numbers_are_those_made_of_states(rows):
    """The short way of the hot path tells what the long one would."""
    quick, slow = decision(True, *rows), decision(True, *rows)

    assert quick.headers() == (headers.by_states(slow) if slow.plan.enforces else {})


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_lines_of_a_calendar_limit_have_the_length_of_the_present_window(unit):
    """The line of one window is kept, and not used in another."""
    limit = Limit(name="budget", algorithm="fixed_window", quota=100, calendar="month", unit=unit)
    plan = Plan((BoundLimit(limit, "sg2:{p}:budget", "key"),))
    for day in (0, 1, 31, 62):  # 1 January 2026 and so on: 31, 31, 28 and 31 days
        numbers = (1, 1767225600_000000 + day * 86400_000000, 7, MINUTE, 0, 0)
        lines = headers.draft_lines(Decision(True, "ok", "store", plan, Reply(numbers)).on({unit: 1}))
        fields = Decision(True, "ok", "store", plan, Reply(numbers)).on({unit: 1}).headers()
        assert {name: value.decode() for name, value in lines} == {
            name.lower().encode(): value for name, value in fields.items()
        }
        assert f"w={(28 if day == 31 else 31) * 86400}".encode() in lines[0][1]


@pytest.mark.parametrize("calendar", [None, "day", "lifetime"])
def test_lines_of_requests_on_a_lease_are_those_of_its_present_reply(calendar):
    """What all of them have in common is kept until the lease is filled again."""
    window = {"calendar": calendar} if calendar else {"window_seconds": 60}
    plan = Plan(
        (BoundLimit(Limit(name="shared", algorithm="fixed_window", quota=100, **window), "sg2:{p}:shared", "k"),)
    )
    first, second = (
        Reply((1, MINUTE * at, at - 9, -1 if calendar == "lifetime" else at, 0, 0)) for at in (5, 7_000_000)
    )
    for reply, held in ((first, 3), (first, 9), (first, 0), (second, 4), (second, 3), (first, 2)):
        made = Decision(True, "ok", "lease", plan, reply, held)
        fields = Decision(True, "ok", "lease", plan, reply, held).headers()
        assert [(name.lower().encode(), value.encode()) for name, value in fields.items()] == headers.draft_lines(made)
