import pytest

from controlplane.changes.words.describe import in_words, seconds_of, sentence
from enforcement.model.limits import Limit
from enforcement.model.matching import Match

DAILY = {"quota": 7, "window_seconds": 86_400}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1 minute", 60),
        ("5m", 300),
        ("1 hour 30 minutes", 5400),
        ("1 hour, 30 min", 5400),
        ("2 Weeks", 1_209_600),
        ("1d12h", 129_600),
    ],
)
def test_a_duration_is_read_as_people_write_it(text, seconds):
    """Nobody has to count seconds."""
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 parsecs", "-5", "1.5 hours", "1 hour later", "1 hour !! 2 min", "٣"])
def test_what_is_no_duration_is_refused(text):
    """A window that was misread would limit something else."""
    with pytest.raises(ValueError):  # noqa: PT011  (its message is not shown)
        seconds_of(text)


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 seconds"), (60, "1 minute"), (5400, "1 hour 30 minutes")])
def test_a_duration_is_written_in_words(seconds, words):
    """And is read back as the same one."""
    assert in_words(seconds) == words
    assert seconds_of(words) == seconds


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (
            {"quota": 100, "algorithm": "sliding_window", "window_seconds": 60},
            "100 requests per minute for each token, counted in a sliding window",
        ),
        (
            {"quota": 5000, "window_seconds": 7200, "unit": "tokens", "partition_by": ("model",)},
            "5,000 tokens per 2 hours for each token and each model, counted in fixed windows",
        ),
        (
            {"quota": 1, "calendar": "month", "time_zone": "Europe/Berlin", "anchor": 15},
            "1 request per calendar month for each token, in the time zone Europe/Berlin, starting at 15",
        ),
        (
            {"quota": 100, "calendar": "month", "rollover": 1_500},
            "100 requests per calendar month for each token, and up to 1,500 that the windows before left, in the time "
            "zone UTC",
        ),
        ({"quota": 10, "calendar": "lifetime"}, "10 requests in total for each token"),
        (
            {"quota": 10, "algorithm": "token_bucket", "window_seconds": 1, "burst": 50},
            "10 requests per second for each token, refilled at a steady rate, with bursts of up to 50",
        ),
        (
            {"quota": 3, "algorithm": "concurrency", "window_seconds": 30},
            "3 requests at a time for each token, a slot ends 30 seconds after its last renewal",
        ),
        (
            {"quota": 0, "window_seconds": 60, "match": Match(methods=("POST",), path="/v1/*")},
            "No requests per minute for each token on POST /v1/*, so every request is denied",
        ),
        (
            {"quota": 7, "window_seconds": 60, "mode": "shadow", "charge_on": ("2xx",)},
            "7 requests per minute for each token, counted in fixed windows, charged for 2xx responses only, "
            "counted but never denied (shadow)",
        ),
        (
            {**DAILY, "unit": "tokens", "weights": {"cached_input": 100, "output": 2000}, "unmetered": "count_only"},
            "7 tokens per day for each token, counted in fixed windows, cached_input tokens weighed 0.1, output tokens "
            "weighed 2, requests that no meter can read pass uncounted",
        ),
        (
            {**DAILY, "unit": "micros", "unpriced": "count_only"},
            "0.000007 USD per day for each token, counted in fixed windows, "
            "models without a price pass and cost nothing",
        ),
        (
            {**DAILY, "unit": "micros", "unpriced": {"charge_as": "gpt-4o"}},
            "0.000007 USD per day for each token, counted in fixed windows, models without a price charged as gpt-4o",
        ),
        (
            {"quota": 7, "window_seconds": 60, "match": Match(attributes={"tier": ("free", "trial")})},
            "7 requests per minute for each token where tier is free or trial, counted in fixed windows",
        ),
    ],
)
def test_a_limit_is_told_in_a_sentence(limit, told):
    """Whoever reads it knows what the limit does."""
    assert sentence(Limit(**limit), "each token") == told


def test_money_is_written_in_the_currency(settings):
    """Nobody has to count zeros; the millionths are what the form holds."""
    settings.CURRENCY = "CHF"
    budget = Limit(name="usd", quota=1_234_500_000, calendar="month", unit="micros")
    assert sentence(budget).startswith("1,234.50 CHF per calendar month for ")
