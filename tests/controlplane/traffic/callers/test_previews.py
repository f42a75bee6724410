from datetime import timedelta

import pytest

from controlplane.releases.preview import words
from controlplane.releases.preview.previews import Range
from controlplane.traffic.callers.kinds import DAY, WEEK
from controlplane.traffic.callers.models import RecordedMinute
from enforcement.model.limits import Limit
from enforcement.model.matching import Match
from tests.controlplane.traffic.callers.conftest import NOW
from tests.controlplane.traffic.callers.traffic import preview
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db

PER_MINUTE = Limit(name="per-minute", quota=10, window_seconds=60)


@pytest.fixture
def policy():
    return PolicyFactory()


@pytest.fixture
def tokens(policy):
    return [TokenFactory(policy=policy) for _ in range(3)]


def test_the_sentence_says_whom_a_limit_would_have_denied(policy, tokens, sent):
    """Two of three tokens sent requests, and one more than the quota in one minute."""
    sent(tokens[0], 25)
    sent(tokens[0], 8, minutes_ago=90)
    sent(tokens[1], 10)

    found = preview(policy, [PER_MINUTE], NOW)

    assert words.sentence(found) == (
        "In the last 24 hours 1 of 2 callers and 15 of 43 requests would have been limited."
    )
    assert words.gaps(found) == ["1 caller sent nothing: no data, not “fine”."]
    assert [(one.caller, one.requests, one.denied.likely, one.busiest) for one in found.affected] == [
        (("token", tokens[0].pk), 33, 15, 25)
    ]
    assert found.is_exact


def test_a_range_is_said_where_the_order_is_not_known(policy, tokens, sent):
    """A sliding log sees requests of two minutes together; how many, depends on the second."""
    sent(tokens[0], 8, minutes_ago=6, part=5)
    sent(tokens[0], 8, minutes_ago=5, part=5)

    found = preview(policy, [Limit(name="a", quota=10, window_seconds=60, algorithm="sliding_log")], NOW)

    assert found.denied == Range(0, 0, 6)
    assert "between 0 and 6" in words.resolution(found)
    assert "about 0 of 1 caller (0 to 1)" in words.sentence(found)


def test_nothing_recorded_is_no_data_and_not_zero(policy, tokens):
    """Silence says nothing about a limit."""
    found = preview(policy, [PER_MINUTE], NOW)

    assert (found.has_data, words.sentence(found)) == (False, f"{words.NO_DATA} {words.SHADOW}")


UNKNOWN = [
    (Limit(quota=1, window_seconds=60, match=Match(path="/v1/*")), "The path of requests is not recorded."),
    (Limit(quota=1, window_seconds=60, partition_by=("ip",)), "The ip of requests is not recorded."),
    (Limit(quota=1, window_seconds=60, algorithm="concurrency"), "How many requests ran at a time is not recorded."),
    (
        Limit(quota=1, window_seconds=60, unit="micros"),
        "What requests cost in money is not recorded before a limit denies them.",
    ),
]


@pytest.mark.parametrize(("limit", "reason"), UNKNOWN, ids=lambda one: str(one)[:20])
def test_a_limit_that_cannot_be_judged_says_why(policy, tokens, sent, limit, reason):
    """Paths, attributes, slots and metered units are not in the recording, so shadow has to show them."""
    sent(tokens[0], 25)

    found = preview(policy, [limit], NOW)

    assert [one.reason for one in found.unknown] == [reason]
    assert (found.has_data, words.sentence(found)) == (False, f"{words.NOT_JUDGED} {words.SHADOW}")


def test_an_override_is_respected_until_it_ends(policy, tokens, sent):
    """A caller with a quota of its own is judged by it, and the page says how many there are."""
    limit = LimitFactory(policy=policy, name="per-minute", quota=10)
    for token in tokens[:2]:
        sent(token, 25)
    OverrideFactory(limit=limit, token=tokens[0], quota=20)
    OverrideFactory(limit=limit, token=tokens[1], quota=1000, ends_at=NOW + timedelta(days=400))

    found = preview(policy, [PER_MINUTE], NOW)

    assert (found.overrides, found.denied) == (2, Range(5, 5, 5))
    assert "2 callers have an override and are judged by it." in words.gaps(found)


def test_a_project_counts_its_tokens_together(sent):
    """A policy of a project has one counter for all of its tokens."""
    policy = PolicyFactory()
    project = ProjectFactory(policy=policy)
    for _ in range(3):
        sent(TokenFactory(project=project), 6)

    found = preview(policy, [PER_MINUTE], NOW)

    assert [(one.caller, one.denied.likely) for one in found.affected] == [(("project", project.pk), 8)]


def test_the_busiest_minute_of_a_project_is_one_minute(sent):
    """Tokens that are busy at different times are not busy together."""
    policy = PolicyFactory()
    project = ProjectFactory(policy=policy)
    for minutes_ago in (5, 7, 9, 25 * 60):
        sent(TokenFactory(project=project), 12, minutes_ago=minutes_ago)

    found = preview(policy, [PER_MINUTE], NOW)

    assert [(one.requests, one.busiest) for one in found.affected] == [(36, 12)]
    assert [bar.label for bar in found.histogram.bars if bar.callers] == ["11–12"]


def test_requests_without_a_token_are_a_caller_of_their_own(sent):
    """They count under the policy that their project has for them, and not under that of its tokens."""
    policy, anonymous = PolicyFactory(), PolicyFactory()
    project = ProjectFactory(policy=policy, anonymous_policy=anonymous)
    sent(TokenFactory(project=project), 16)
    RecordedMinute.objects.create(project_id=project.pk, at=NOW - timedelta(minutes=5), allowed=13, cost=13)

    found = [preview(one, [PER_MINUTE], NOW) for one in (policy, anonymous)]

    assert [(one.caller, one.denied.likely) for each in found for one in each.affected] == [
        (("project", project.pk), 6),
        (("anonymous", project.pk), 3),
    ]


def test_requests_of_another_cost_are_not_exact(policy, tokens, sent):
    """Five requests of cost 4 would be denied by 10 a minute, which one number a request does not tell."""
    sent(tokens[0], 5)
    RecordedMinute.objects.update(cost=20)

    found = preview(policy, [PER_MINUTE], NOW)

    assert not found.is_exact
    assert words.gaps(found)[0].startswith("Judged as if each request cost one")


@pytest.mark.parametrize(
    ("limit", "is_exact"),
    [
        (Limit(quota=20, calendar="day"), True),
        (Limit(quota=20, calendar="week"), False),
        (Limit(quota=20, window_seconds=2 * 86_400), False),
    ],
    ids=str,
)
def test_a_window_of_days_is_not_exact(policy, tokens, sent, limit, is_exact):
    """What was used before the last 24 hours is not followed, in a preview of a week neither."""
    sent(tokens[0], 25)

    found = preview(policy, [limit], NOW, WEEK)

    assert (found.denied, found.is_exact) == (Range(5, 5, 5), is_exact)
    assert any("is not considered, though the limit remembers it" in text for text in words.gaps(found)) != is_exact


def test_the_global_policy_counts_everything_together(sent):
    """The one counter of the installation has every request."""
    for _ in range(2):
        sent(TokenFactory(), 6)

    assert preview(PolicyFactory(everywhere=True), [PER_MINUTE], NOW).denied.likely == 2


def test_a_reader_learns_nothing_of_other_projects(policy, tokens, sent):
    """Callers, requests and names are those of the projects that the reader may see."""
    for token in tokens:
        sent(token, 25)

    found = preview(policy, [PER_MINUTE], NOW, projects=[tokens[0].project_id])

    assert (found.concerned, found.callers, found.requests) == (1, 1, 25)
    assert [one.caller[1] for one in found.affected] == [tokens[0].pk]


def test_requests_outside_the_span_are_not_counted(policy, tokens, sent):
    """A day is a day; a week is seven."""
    sent(tokens[0], 25, minutes_ago=5 * 24 * 60)

    assert not preview(policy, [PER_MINUTE], NOW, DAY).has_data
    assert preview(policy, [PER_MINUTE], NOW, WEEK).denied.likely == 15


def test_a_replay_that_is_too_large_gives_the_summary(policy, tokens, sent, monkeypatch):
    """The busiest moments alone say how many callers could be denied at most."""
    monkeypatch.setattr("controlplane.releases.preview.previews.MOST_CELLS", 1)
    for token in tokens[:2]:
        sent(token, 25)

    found = preview(policy, [PER_MINUTE], NOW)

    assert "at most 2 of 2 callers" in words.sentence(found)


@pytest.mark.parametrize(("requests", "step"), [(20, 0), (31, 10)])
def test_a_bucket_that_refills_as_fast_needs_no_replay(policy, tokens, sent, requests, step):
    """Many requests in an hour are no sign of a denial if no minute has more than flow in."""
    for minute in range(10):
        sent(tokens[0], requests, minutes_ago=90 + minute)

    found = preview(policy, [Limit(name="a", quota=60, window_seconds=60, algorithm="token_bucket")], NOW)

    assert (found.denied.high, found.step) == (0, step)


def test_the_histogram_has_the_callers_by_their_busiest_minute(policy, tokens, sent):
    """One bar ends with the quota, so what is right of the line would be denied."""
    for token, requests in zip(tokens, (3, 10, 11), strict=True):
        sent(token, requests)

    bars = [(bar.label, bar.callers) for bar in preview(policy, [PER_MINUTE], NOW).histogram.bars if bar.callers]

    assert bars == [("3–4", 1), ("9–10", 1), ("11–12", 1)]
