"""Each field of each object, changed alone, is named with what it was and becomes wherever a change is shown."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.words.differences import differences
from controlplane.changes.words.effects import changes_of
from controlplane.changes.words.entries import details, lines_of
from controlplane.changes.words.fields import NoNames
from enforcement.model import limit_fields
from enforcement.model.limits import Limit

NAMES = NoNames()
PLAIN = {"name": "m", "algorithm": "fixed_window", "quota": 10, "window_seconds": 60}
BUCKET = {**PLAIN, "algorithm": "token_bucket"}
MONTH = {"name": "m", "algorithm": "fixed_window", "quota": 10, "calendar": "month"}
TOKENS, MONEY = {**PLAIN, "unit": "tokens"}, {**PLAIN, "unit": "micros"}

LIMITS = [
    ("algorithm", PLAIN, "sliding_window", "Algorithm: fixed window → sliding window"),
    ("quota", PLAIN, 25, "10 requests per minute → 25 requests per minute"),
    ("quota", MONEY, 5_000_000, "0.00001 USD per minute → 5.00 USD per minute"),
    ("window_seconds", PLAIN, 3600, "10 requests per minute → 10 requests per hour"),
    ("window_seconds", {**PLAIN, "algorithm": "concurrency"}, 300, "Slot lifetime: 1 minute → 5 minutes"),
    ("calendar", MONTH, "lifetime", "10 requests per calendar month → 10 requests in total"),
    ("time_zone", MONTH, "Europe/Berlin", "Time zone: UTC → Europe/Berlin"),
    ("anchor", MONTH, 15, "Period starts: on day 1 → on day 15"),
    ("burst", BUCKET, 10, "Burst: same as the quota (10) → 10 requests"),
    ("rollover", MONTH, 5, "Carried over: nothing → up to 5 unused requests"),
    ("unit", PLAIN, "pages", "10 requests per minute → 10 pages per minute"),
    ("partition_by", PLAIN, ["ip"], "Counted per: token or project → token or project and ip"),
    ("match", PLAIN, {"methods": ["POST", "PUT"]}, "Methods: any → POST or PUT"),
    ("match", PLAIN, {"path": "/v1/*"}, "Path: any → /v1/*"),
    ("match", PLAIN, {"attributes": {"model": "gpt-*"}}, 'Where model is: anything → "gpt-*"'),
    (
        "match",
        {**PLAIN, "match": {"attributes": {"model": "a or b"}}},
        {"attributes": {"model": ["a", "b"]}},
        'Where model is: "a or b" → one of "a", "b"',
    ),
    ("mode", PLAIN, "shadow", "Mode: enforced → shadow (counted, never denied)"),
    (
        "consistency",
        PLAIN,
        "leased",
        "Counting: exact (one call to the store per request) → leased (permits taken in advance)",
    ),
    (
        "on_store_failure",
        PLAIN,
        "deny",
        "If the store is unavailable: each process enforces its share → every request is denied",
    ),
    ("charge_on", PLAIN, ["2xx"], "Charged responses: all, charged at once → 2xx only"),
    ("weights", TOKENS, {"cached_input": 100}, "Weight of cached input tokens: 1 → 0.1"),
    ("unpriced", MONEY, {"charge_as": "gpt-4o"}, "Model without a price: request denied → charged as gpt-4o"),
    ("unmetered", TOKENS, "count_only", "Request that cannot be metered: denied → allowed and not counted"),
]
POLICY = {"id": "pol_1", "slug": "free", "name": "Free", "description": "", "project": None, "is_global": False}
POLICY |= {"limits": [PLAIN]}
PROJECT = {"id": "proj_1", "slug": "chat", "name": "Chat", "policy": None, "active": True, "anonymous_policy": None}
PROJECT |= {"token_policy": None, "partition_cap": None, "time_zone": "UTC"}
TOKEN = {"id": "tok_1", "project": "proj_1", "name": "ci", "policy": None, "expires_at": None, "revoked_at": None}
OVERRIDE = {"id": "ovr_1", "token": "tok_1", "project": None, "limit": "free/m", "quota": 10, "burst": None}
OVERRIDE |= {"reason": "launch", "ends_at": None}
LATER = "2027-01-01T00:00:00+00:00"
OTHERS = [
    ("policy", POLICY, {"slug": "gold"}, "Slug: free → gold"),
    ("policy", POLICY, {"name": "Gold"}, "Name: Free → Gold"),
    ("policy", POLICY, {"description": "For all."}, "Description: none → For all."),
    ("policy", POLICY, {"is_global": True}, "Applies to: its tokens and projects → every request"),
    ("policy", POLICY, {"managed_by": "git/chat"}, "Managed by: admin and API → git/chat"),
    ("policy", POLICY, {"metering": {"default_cap": 4096}}, "Default output cap: standard → 4,096 tokens"),
    ("policy", POLICY, {"metering": {"part_tokens": {"image": 1000}}}, "Tokens per image: standard → 1,000 tokens"),
    (
        "policy",
        POLICY,
        {"metering": {"on_disconnect": "drain"}},
        "When the client disconnects: cancel the call → read the response to the end",
    ),
    (
        "policy",
        POLICY,
        {"metering": {"clamp_at_least": 256}},
        "Reduce output caps: never (deny instead) → down to 256 tokens",
    ),
    (
        "policy",
        POLICY,
        {"metering": {"lost_after": 60}},
        "Lost requests are settled as their estimates: after 1 hour → after 1 minute",
    ),
    (
        "policy",
        POLICY,
        {"metering": {"estimate": "bound", "on_disconnect": "free"}},
        "Input estimate: typical → upper bound (denied if unbounded)",
    ),
    ("project", PROJECT, {"slug": "till"}, "Slug: chat → till"),
    ("project", PROJECT, {"name": "Till"}, "Name: Chat → Till"),
    ("project", PROJECT, {"policy": "free"}, "Policy: none → free"),
    (
        "project",
        PROJECT,
        {"anonymous_policy": "free"},
        "Policy for requests without a token: none (these requests are denied) → free",
    ),
    ("project", PROJECT, {"token_policy": "free"}, "Policy for new tokens: none → free"),
    ("project", PROJECT, {"active": False}, "Status: active → inactive (its tokens are denied)"),
    ("project", PROJECT, {"partition_cap": 10_000}, "Values counted per limit: the installation's → 10,000"),
    ("project", PROJECT, {"time_zone": "Asia/Tokyo"}, "Time zone of statements: UTC → Asia/Tokyo"),
    ("project", PROJECT, {"has_intake": True}, "Takes metered usage: no → yes"),
    ("token", TOKEN, {"name": "build"}, "Name: ci → build"),
    ("token", TOKEN, {"policy": "free"}, "Policy: that of its project → free"),
    ("token", TOKEN, {"labels": {"mode": "gold"}}, "Label mode: not set → gold"),
    ("token", TOKEN, {"expires_at": LATER}, "Expires: never → 2027-01-01 00:00 UTC"),
    ("token", TOKEN, {"revoked_at": LATER}, "Revoked: no → 2027-01-01 00:00 UTC"),
    ("override", OVERRIDE, {"quota": 20}, "free/m: 10, never ends → 20, never ends"),
    ("override", OVERRIDE, {"burst": 20}, "free/m: 10, never ends → 10, bursts of 20, never ends"),
    ("override", OVERRIDE, {"ends_at": LATER}, "free/m: 10, never ends → 10, ends 2027-01-01 00:00 UTC"),
    ("override", OVERRIDE, {"partition": "ip = 1.2.3.4"}, "free/m: 10, never ends → 10 with ip = 1.2.3.4, never ends"),
    ("override", OVERRIDE, {"reason": "sale"}, "Reason: launch → sale"),
    ("override", OVERRIDE, {"ended_at": LATER}, "Ended: no → 2027-01-01 00:00 UTC"),
]


def with_limits(*limits):
    return {**POLICY, "limits": list(limits)}


def shown_everywhere(kind, before, after):
    """Return the line of the list of revisions for a change of one field, after a look at the other doors."""
    entry = AuditEntry(action=f"{kind}.update", object_type=kind, before=before, after=after)
    (tried,), (audited,), (line,) = differences(kind, before, after), details(entry, NAMES), lines_of(entry, NAMES)
    assert tried.before != tried.after
    for one in (audited, line):
        assert one.old != one.new
        assert not {one.old, one.new} & {"", "—", "None"}
    return str(line)


@pytest.mark.parametrize(("field", "before", "value", "expected"), LIMITS)
def test_each_field_of_a_limit(field, before, value, expected):
    """The words are those of the table of fields."""
    after = {**before, field: value}

    assert shown_everywhere("policy", with_limits(before), with_limits(after)) == f"m: {expected}"


@pytest.mark.parametrize(("field", "before", "value", "expected"), LIMITS)
def test_each_field_of_a_limit_in_a_review(field, before, value, expected):
    """What it was is not what it becomes, and no confirmation of it is one of another change."""
    (change,) = changes_of([before], [{**before, field: value}])
    (back,) = changes_of([{**before, field: value}], [before])

    assert change.is_listed
    assert change.was != change.becomes
    assert change.seen != back.seen


def test_no_field_of_a_limit_is_left_out():
    """Apart from its name, by which it is found."""
    assert {case[0] for case in LIMITS} == {field.name for field in limit_fields.FIELDS} - {"name"}
    for field, before, value, _ in LIMITS:
        Limit.from_json(before, published=True)
        Limit.from_json({**before, field: value}, published=True)


def test_the_order_of_limits():
    """The first limit that denies gives its name to a denial."""
    other = {**PLAIN, "name": "d"}

    line = shown_everywhere("policy", with_limits(PLAIN, other), with_limits(other, PLAIN))

    assert line == "Order of limits: m, d → d, m"


@pytest.mark.parametrize(("kind", "record", "changed", "expected"), OTHERS)
def test_each_field_of_another_object(kind, record, changed, expected):
    """A field that is not set says what that does."""
    assert shown_everywhere(kind, record, {**record, **changed}) == expected
