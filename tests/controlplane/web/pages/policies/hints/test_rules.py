"""What may be unwise about valid limits."""

import pytest

from controlplane.web.pages.policies.hints.rules import warnings
from controlplane.web.pages.policies.hints.trying import folded, sample, tried
from enforcement.model.limits import Limit

MINUTE, HOUR = 60, 3600


def limit(name: str, quota: int, window: int | None = MINUTE, **fields) -> Limit:
    given = {"algorithm": "sliding_window", "window_seconds": window} if window else {"algorithm": "fixed_window"}
    return Limit.from_json({"name": name, "quota": quota, **given, **fields})


def texts(*limits: Limit, **options) -> dict[str, list[tuple[str, str]]]:
    found = warnings({one.name: one for one in limits}, **options)
    return {name: [(one.kind, one.text) for one in some] for name, some in found.items() if some}


def test_a_longer_window_that_is_tighter_makes_the_shorter_one_idle():
    """Of 100 a minute and 50 an hour, the first never decides."""
    found = texts(limit("per-minute", 100), limit("per-hour", 50, HOUR))

    sentence = "This limit never decides, because per-hour admits only 50 requests per hour."
    assert found == {"per-minute": [("warn", sentence)]}


def test_a_longer_window_that_is_used_up_early_is_said():
    """It is usual, so it is no warning: how long it lasts at the full pace, and what would last for ever."""
    found = texts(limit("per-minute", 10), limit("per-day", 5_000, None, calendar="day"))

    sentence = (
        "The longer window decides. At 10 requests per minute per-day (5,000) is used up in 8 hours 20 minutes. To "
        "allow this pace all the time, raise per-day to 14,400."
    )
    assert found == {"per-minute": [("info", sentence)]}


def test_two_limits_of_one_meaning_are_said_at_the_one_that_never_decides():
    """The lower quota decides, also if one follows the calendar."""
    found = texts(limit("a", 100), limit("b", 60), limit("c", 7, None, calendar="month"))

    assert ("warn", "b counts the same, with 60 requests per minute. The lower quota decides.") in found["a"]
    assert all("counts the same" not in text for _, text in found["b"])


@pytest.mark.parametrize(
    "other",
    [
        limit("other", 50, HOUR, unit="tokens"),
        limit("other", 50, HOUR, partition_by=["ip"]),
        limit("other", 50, HOUR, match={"path": "/v1/*"}),
        limit("other", 50, HOUR, mode="shadow", unit="tokens"),
        limit("other", 5, HOUR, algorithm="concurrency"),
        limit("other", 50, None, calendar="lifetime"),
        limit("other", 6_000, HOUR),
    ],
)
def test_limits_that_count_other_requests_are_not_compared(other):
    """Nor those without a rate, nor those that agree."""
    assert texts(limit("per-minute", 100), other) == {}


def test_a_shadow_limit_beside_its_enforced_twin_is_a_trial():
    """That is what shadow is for."""
    assert texts(limit("a", 100), limit("b", 60, mode="shadow")) == {}


def test_a_default_cap_that_never_fits_is_said():
    """A request without a cap of its own would always be denied."""
    found = texts(limit("tokens", 1_000, unit="tokens"), default_cap=4_096)

    sentence = "A request without a cap is charged 4,096 output tokens, which never fit into 1,000."
    assert found == {"tokens": [("warn", sentence)]}


IMAGES = limit(
    "images", 50, HOUR, match={"methods": ["POST"], "path": "/v1/images/*", "attributes": {"model": "dall-*"}}
)


@pytest.mark.parametrize(
    ("method", "path", "lines", "why"),
    [
        ("POST", "/v1/images/edits", ["model = dall-e-3"], ""),
        ("post", " /v1/images/edits ", ["model=dall-e-3", "nonsense"], ""),
        ("GET", "/v1/images/edits", ["model = dall-e-3"], "method is not POST"),
        ("POST", "/v1/image", ["model = dall-e-3"], "path is not /v1/images/*"),
        ("POST", "/v1/images/edits", ["model = gpt-4o"], "model is not dall-*"),
        ("POST", "/v1/images/edits", [], "the request has no model"),
        ("", "/v1/images/edits", ["model = dall-e-3"], "the request has no method"),
    ],
)
def test_a_sample_request_says_why_a_limit_does_not_count_it(method, path, lines, why):
    """The first reason, in words."""
    assert tried(IMAGES, sample(method, path, lines)).why == why


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "the token has no team"),
        (["label.team = blue"], "team of the token is not red"),
        (["label.team = red"], ""),
    ],
)
def test_labels_of_the_token_are_typed_like_attributes(lines, why):
    """A limit for one team."""
    found = tried(limit("red", 5, match={"attributes": {"label.team": "red"}}), sample("GET", "/", lines))

    assert (found.why, found.matches) == (why, not why)


def test_a_cost_that_never_fits_is_said():
    """The limit matches, and always denies."""
    assert tried(limit("tokens", 1_000, unit="tokens"), sample("GET", "/", []), 5_000).why == (
        "a cost of 5,000 never fits, so it is denied"
    )


def test_folded_parts_say_what_they_hold():
    """While they are closed."""
    daily = limit("d", 5, None, calendar="day", time_zone="Europe/Berlin", on_store_failure="deny", charge_on=["2xx"])

    assert folded(IMAGES) == {
        "which": "POST, /v1/images/*, model dall-*",
        "how": "sliding window, exact over the fleet",
        "failure": "each proxy keeps its share of the quota",
    }
    assert folded(daily) == {
        "which": "every method, every path",
        "how": "fixed window, exact over the fleet, Europe/Berlin time, charged for 2xx",
        "failure": "every request is denied",
    }
