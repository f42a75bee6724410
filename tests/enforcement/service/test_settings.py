"""The settings of the decision service."""

from __future__ import annotations

import pytest

from enforcement.service.settings import ServiceSettings, limiter_settings
from enforcement.settings import Settings


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("SLUICEGATE_TRUSTED_PROXIES", "nonsense", "does not appear to be an IPv4 or IPv6 network"),
        ("SLUICEGATE_SERVICE_CALLERS", "1.2.3.4/99", "does not appear to be an IPv4 or IPv6 network"),
        ("SLUICEGATE_SERVICE_CALLERS", "", "must not be empty"),
        ("SLUICEGATE_SERVICE_CALLERS", " , ", "must not be empty"),
        ("SLUICEGATE_SERVICE_SECRET", "", "must not be empty"),
        ("SLUICEGATE_SERVICE_SECRET", "short", "must have 16 to 256 characters, got 5"),
        ("SLUICEGATE_SERVICE_SECRET", "read-from-a-file-of-one-line\n", "must be printable ASCII without blanks"),
        ("SLUICEGATE_SERVICE_SECRET", "ein-schönes-geheimnis", "must be printable ASCII without blanks"),
        ("SLUICEGATE_METRICS_NETWORKS", "nonsense", "does not appear to be an IPv4 or IPv6 network"),
        ("SLUICEGATE_HEADERS", "itef", "must be one of ietf"),
        ("SLUICEGATE_ANONYMOUS_PROJECT", "No Slug", "must be 1 to 63"),
        ("SLUICEGATE_COSTS_HEADER", "two words", "must be the name of a header field, got 'two words'"),
        ("SLUICEGATE_DEADLINE_MS", "0", "must be an integer from 1 to 20000, got '0'"),
        ("SLUICEGATE_DEADLINE_MS", "40", "must be at least 50 ms, which is twice SLUICEGATE_TIMEOUT_MS, got 40"),
    ],
)
def test_settings_that_are_wrong_are_named(name, value, rule):
    """The message names the variable and the rule, and comes before anything is served."""
    read = limiter_settings if name == "SLUICEGATE_DEADLINE_MS" else ServiceSettings.from_env
    with pytest.raises(ValueError, match=f"^{name}: .*{rule}"):
        read({name: value})


def test_a_deadline_leaves_the_look_up_what_the_decision_does_not_need():
    """A proxy that waits for 200 ms gets an answer by then, also for a token that was never seen."""
    assert limiter_settings({"SLUICEGATE_DEADLINE_MS": "200"}).lookup == pytest.approx(0.175)
    assert limiter_settings({"SLUICEGATE_DEADLINE_MS": "2000"}).lookup == Settings().lookup
    assert limiter_settings({}) == Settings()
