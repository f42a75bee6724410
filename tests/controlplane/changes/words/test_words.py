"""What a change changed is said in words."""

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.words.entries import details, lines_of
from controlplane.changes.words.words import lines
from controlplane.objects.policies.names import Names
from tests.factories import PolicyFactory

pytestmark = pytest.mark.django_db

LIMIT = {"name": "per-minute", "algorithm": "fixed_window", "quota": 25, "window_seconds": 60}
POLICY = {"id": "pol_1", "slug": "chat-free", "name": "Free", "is_global": False, "version": 3, "limits": [LIMIT]}


def said(before, after, kind="policy") -> list[str]:
    return [str(line) for line in lines(kind, before, after, Names([before, after]))]


def with_limit(**fields) -> dict:
    return {**POLICY, "limits": [{**LIMIT, **fields}]}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (with_limit(quota=2), ["per-minute: 25 requests per minute → 2 requests per minute"]),
        (
            with_limit(quota=10, mode="shadow"),
            [
                "per-minute: 25 requests per minute → 10 requests per minute",
                "per-minute: Mode: enforced → shadow (counted, never denied)",
            ],
        ),
        (with_limit(window_seconds=3600), ["per-minute: 25 requests per minute → 25 requests per hour"]),
        (with_limit(partition_by=["ip"]), ["per-minute: Counted per: token or project → token or project and ip"]),
        (
            with_limit(name="other"),
            ["per-minute: removed: 25 requests per minute", "other: added: 25 requests per minute"],
        ),
        ({**POLICY, "slug": "chat"}, ["Slug: chat-free → chat"]),
        ({**POLICY, "is_global": True}, ["Applies to: its tokens and projects → every request"]),
        (None, ["deleted", "per-minute: 25 requests per minute"]),
    ],
)
def test_a_changed_policy(after, expected):
    """Each line names the limit, and what it was and is."""
    assert said(POLICY, after) == expected


def test_a_limit_that_is_enforced_says_so():
    """Leaving shadow is the change that denies."""
    assert said(with_limit(mode="shadow"), POLICY) == ["per-minute: Mode: shadow (counted, never denied) → enforced"]


def test_policies_are_named_by_their_slugs():
    """An id means nothing to people. One that is deleted has no other name."""
    policy = PolicyFactory(slug="gold")
    before = {"id": "proj_1", "slug": "chat", "policy": policy.pk, "active": True}

    assert said(before, {**before, "policy": "pol_gone", "active": False}, "project") == [
        "Policy: gold → pol_gone",
        "Status: active → inactive (its tokens are denied)",
    ]


def test_an_override_says_its_quota_and_end():
    """Until when is part of what it says."""
    override = {"id": "ovr_1", "limit": "free/per-day", "token": "tok_1", "project": None, "quota": 500, "burst": None}
    override |= {"reason": "launch", "ends_at": None}

    assert said(override, {**override, "quota": 700, "ends_at": "2026-11-27T17:00:00+00:00"}, "override") == [
        "free/per-day: 500, never ends → 700, ends 2026-11-27 17:00 UTC"
    ]


@pytest.mark.parametrize("record", ["2026-11-27T18:00:00+01:00", "2026-11-27T17:00:00+00:00"])
def test_an_end_is_the_same_instant_whoever_recorded_it(record):
    """A form reads it in the zone of its user, and the record keeps that. Its reader may have another one."""
    override = {"id": "ovr_1", "limit": "free/per-day", "quota": 500, "ends_at": None}

    with timezone.override("Europe/Berlin"):
        assert said(override, {**override, "ends_at": record}, "override") == [
            "free/per-day: 500, never ends → 500, ends 2026-11-27 18:00 Europe/Berlin (17:00 UTC)"
        ]


@pytest.mark.parametrize(
    ("action", "expected"),
    [("token.revoke", "revoked"), ("counters.reset", "counters reset"), ("x.new_deed", "new deed")],
)
def test_other_deeds_are_said_in_a_word(action, expected):
    """Their records do not say it."""
    entry = AuditEntry(action=action, before={"id": "tok_1"}, after={"id": "tok_1"})

    assert [str(line) for line in lines_of(entry, Names([]))] == [expected]


def test_every_field_has_its_name_in_words():
    """The page of a revision has all of them, also of what is new, and no name of a column."""
    record = with_limit(match={"methods": ["GET"]}, partition_by=["ip"])
    entry = AuditEntry(object_type="policy", before=None, after=record)

    assert [str(line) for line in details(entry, Names([]))] == [
        "Id: not there → pol_1",
        "Slug: not there → chat-free",
        "Name: not there → Free",
        "Applies to: not there → its tokens and projects",
        "per-minute: Name: not there → per-minute",
        "per-minute: Algorithm: not there → fixed window",
        "per-minute: Quota: not there → 25 requests",
        "per-minute: Window: not there → 1 minute",
        "per-minute: Methods: not there → GET",
        "per-minute: Counted per: not there → token or project and ip",
    ]
    revoked = AuditEntry(before={"revoked_at": None}, after={"revoked_at": "2026-11-26T12:00:00+00:00"})
    assert [line.what for line in details(revoked, Names([]))] == ["Revoked"]
