"""Which findings are events. Each has one row, one id and one message a webhook."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from controlplane.operations.alerts.events import KEPT, decide, prune
from controlplane.operations.alerts.findings import UNKNOWN, AlertFinding, Found
from controlplane.operations.alerts.models import AlertEvent, AlertRule
from controlplane.operations.webhooks.models import Delivery
from tests.controlplane.conftest import at_once
from tests.controlplane.operations.alerts.conftest import listed
from tests.factories import AlertRuleFactory, DestinationFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def found_at(level: int, period: str = "noon", subject: str = "ci", **fields) -> Found:
    """What a look finds that has read one counter, and no others."""
    titles = (f"{subject} has reached {level} %", f"{subject} is below 50 % again")
    findings = [AlertFinding(subject, *titles, level, period, **fields)] if level else []
    return Found(findings, False, frozenset([subject]))


@pytest.fixture
def rule(db) -> AlertRule:
    return AlertRuleFactory(name="usage", told=[DestinationFactory(), DestinationFactory()])


def test_each_threshold_is_one_event_a_window(rule):
    """However often it is looked at."""
    for minute, level in enumerate([0, 50, 50, 80, 80, 100, 100]):
        decide(rule, found_at(level), NOON + minute * MINUTE)

    assert listed() == [("raised", 50), ("raised", 80), ("raised", 100)]


def test_thresholds_that_are_passed_at_once_are_one_event(rule):
    decide(rule, found_at(100), NOON)
    decide(rule, found_at(100), NOON + MINUTE)

    assert listed() == [("raised", 100)]


def test_what_is_over_is_one_event(rule):
    """It has the title of the end, and the earlier ones are no longer open."""
    for minute, level in enumerate([50, 100, 0, 0]):
        decide(rule, found_at(level), NOON + minute * MINUTE)

    assert listed() == [("raised", 50), ("raised", 100), ("resolved", 100)]
    assert AlertEvent.objects.last().title == "ci has reached 50 %"
    assert AlertEvent.objects.first().title == "ci is below 50 % again"
    assert not AlertEvent.objects.filter(resolved_at=None).exists()


def test_less_than_the_threshold_that_was_reached_is_not_over(rule):
    """The event of the end says that usage is below the lowest one."""
    for minute, level in enumerate([80, 50, 80, 50]):
        decide(rule, found_at(level), NOON + minute * MINUTE)
    assert listed() == [("raised", 80)]

    decide(rule, found_at(0), NOON + 5 * MINUTE)

    assert listed() == [("raised", 80), ("resolved", 80)]


def test_a_rule_may_say_nothing_of_the_end(rule):
    AlertRule.objects.update(recovery=False)
    rule.refresh_from_db()

    for minute, level in enumerate([50, 0]):
        decide(rule, found_at(level), NOON + minute * MINUTE)

    assert listed() == [("raised", 50)]
    assert not AlertEvent.objects.filter(resolved_at=None).exists()


def test_the_next_window_is_told_of_after_the_cool_down(rule):
    """Before, only a higher threshold is."""
    decide(rule, found_at(80), NOON)
    decide(rule, found_at(0), NOON + MINUTE)
    decide(rule, found_at(80, "12:02"), NOON + 2 * MINUTE)
    assert listed(state="raised") == [("raised", 80)]
    decide(rule, found_at(100, "12:02"), NOON + 3 * MINUTE)
    decide(rule, found_at(100, "13:02"), NOON + HOUR + 2 * MINUTE)
    assert listed(state="raised") == [("raised", 80), ("raised", 100)]

    decide(rule, found_at(100, "13:03"), NOON + HOUR + 3 * MINUTE)

    assert listed(state="raised") == [("raised", 80), ("raised", 100), ("raised", 100)]
    assert AlertEvent.objects.filter(state="raised", resolved_at=None).get().period == "13:03"


def test_one_window_has_no_second_event_after_the_cool_down(rule):
    """A month is longer, and usage may fall by a refund and rise again."""
    for hours, level in ((0, 80), (1, 0), (5, 80), (9, 80)):
        decide(rule, found_at(level), NOON + hours * HOUR)

    assert listed(state="raised") == [("raised", 80)]


def test_without_windows_there_is_an_event_each_time(rule):
    """After the cool-down. The limit may have none, as a token bucket has."""
    for minutes, level in ((0, 100), (1, 100), (2, 0), (3, 100), (4, 0), (62, 100), (63, 100)):
        decide(rule, found_at(level, ""), NOON + minutes * MINUTE)

    assert listed() == [("raised", 100), ("resolved", 100), ("raised", 100)]


def test_what_was_not_looked_at_is_not_over(rule):
    """Unless its window has ended since, which the clock says."""
    decide(rule, found_at(80, ends_at=NOON + HOUR), NOON)

    decide(rule, found_at(0, subject="other"), NOON + MINUTE)
    decide(rule, UNKNOWN, NOON + 2 * MINUTE)
    assert listed() == [("raised", 80)]
    decide(rule, UNKNOWN, NOON + HOUR)
    assert listed() == [("raised", 80), ("resolved", 80)]


def test_subjects_are_told_apart(rule):
    for subject in ("a", "b"):
        decide(rule, found_at(80, subject=subject), NOON + (subject == "b") * MINUTE)

    assert set(AlertEvent.objects.values_list("subject", flat=True)) == {"a", "b"}


def test_an_older_look_decides_nothing(rule):
    """Nor does a second one of the same moment."""
    decide(rule, found_at(80), NOON)

    assert decide(rule, found_at(0), NOON) == []
    assert decide(rule, found_at(100), NOON - MINUTE) == []
    assert listed() == [("raised", 80)]


@pytest.mark.parametrize("back", [HOUR, 24 * HOUR])
@pytest.mark.parametrize("period", ["noon", ""])
def test_a_clock_that_is_set_back_silences_no_rule(rule, back, period):
    """What is open goes on, and ends. A new window and a higher threshold are told of."""
    decide(rule, found_at(50, period), NOON + back)

    decide(rule, found_at(50, period), NOON)
    assert listed() == [("raised", 50)]
    decide(rule, found_at(80, period), NOON + MINUTE)
    decide(rule, found_at(0, period), NOON + 2 * MINUTE)

    assert sorted(listed()) == [("raised", 50), ("raised", 80), ("resolved", 80)]
    assert not AlertEvent.objects.filter(resolved_at=None).exists()
    decide(rule, found_at(80, period and "later"), NOON + 2 * HOUR)
    assert listed(resolved_at=None) == [("raised", 80)]


def test_an_inactive_rule_has_no_events(rule):
    AlertRule.objects.update(active=False)

    assert decide(rule, found_at(80), NOON) == []


def test_each_webhook_gets_one_message_with_the_id_of_the_event(rule):
    """All have the same body."""
    project = ProjectFactory(slug="chat")

    (event,) = decide(rule, found_at(80, project=project.pk, data={"quota": 100, "text": "80 of 100."}), NOON)

    facts = {"title": "ci has reached 80 %", "quota": 100, "text": "80 of 100."}
    first, second = Delivery.objects.all()
    assert {first.message_id, second.message_id} == {event.pk}
    assert first.body == second.body
    assert json.loads(first.body) == {
        "type": "alert.usage.raised",
        "timestamp": "2026-11-26T12:00:00Z",
        "data": {"id": event.pk, "rule": "usage", "project": "chat", "state": "raised", "level": 80, **facts},
    }


def test_two_workers_at_once_decide_once(rule):
    """Even of the same look."""

    def look() -> int:
        try:
            return len(decide(rule, found_at(80), NOON))
        finally:
            connection.close()

    assert sorted(at_once([look] * 4)) == [0, 0, 0, 1]
    assert listed() == [("raised", 80)]
    assert Delivery.objects.count() == 2


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_worker_that_is_killed_anywhere_changes_nothing_of_what_follows(rule):
    """Before each of the statements once. The next look decides all of it, and nothing twice."""
    for minute, level in enumerate([50, 100, 0]):
        number = 0
        while True:
            number += 1
            left = iter(range(number))

            def die(execute, sql, params, many, context, left=left):
                if next(left, None) is None:
                    raise Killed
                return execute(sql, params, many, context)

            now = NOON + minute * MINUTE + number * timedelta(seconds=1)
            try:
                with connection.execute_wrapper(die):
                    decide(rule, found_at(level), now)
                break
            except Killed:
                pass

    assert listed() == [("raised", 50), ("raised", 100), ("resolved", 100)]
    ids = set(AlertEvent.objects.values_list("pk", flat=True))
    assert Delivery.objects.count() == 2 * len(ids)
    assert set(Delivery.objects.values_list("message_id", flat=True)) == ids


def test_old_events_are_pruned_unless_they_matter(rule):
    """Those that are open stay, and those whose period goes on, as it would have a second event."""
    decide(rule, found_at(80, subject="over"), NOON)
    decide(rule, found_at(0, subject="over"), NOON + MINUTE)
    decide(rule, found_at(80, subject="long", ends_at=NOON + 2 * KEPT), NOON + 2 * MINUTE)
    decide(rule, found_at(0, subject="long"), NOON + 3 * MINUTE)
    decide(rule, found_at(80, subject="open"), NOON + 4 * MINUTE)

    prune(NOON + KEPT + HOUR)

    left = set(AlertEvent.objects.filter(state="raised").values_list("subject", flat=True))
    assert left == {"long", "open"}
