"""From an answer above its bound to the addend that all enforcers read."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.prices.actions import raise_addends
from controlplane.objects.prices.broken import lately
from controlplane.objects.prices.models import BrokenBound, ModelAddend, ModelPrice
from controlplane.objects.projects.actions import issue_token
from controlplane.operations.alerts.models import AlertEvent
from controlplane.operations.alerts.usual import add_usual
from controlplane.releases.publishing import publisher
from controlplane.traffic.usage import rollup
from controlplane.traffic.usage.drain import drain
from controlplane.traffic.usage.tasks import drain as drain_task
from enforcement import aio
from enforcement.doors.asgi import LimitMiddleware
from enforcement.metering.broken import BEYOND, MAX_PAIRS
from enforcement.model.keys import Keys
from enforcement.store_calls.reservations import open_reservations
from tests.controlplane.operations.alerts.conftest import evaluate
from tests.controlplane.traffic.usage.conftest import USAGE, row
from tests.enforcement.doors.metered.provider import Provider, ask, whole
from tests.factories import LimitFactory, ModelPriceFactory, PolicyFactory, ProjectFactory
from tests.loops import run

pytestmark = pytest.mark.django_db(transaction=True)

HELLO = {"model": "gpt-x", "max_tokens": 500, "messages": [{"role": "user", "content": "x" * 400}]}


@pytest.fixture
def now():
    return timezone.now()


@pytest.fixture
def chat():
    return ProjectFactory(slug="chat")


@pytest.fixture
def published(store, client_of_store):
    """The entries of the prices that enforcers would read, by model."""

    def read():
        document = json.loads(client_of_store.get("sg:{doc}:prices"))
        return {entry["model"]: entry for name in ("prices", "overrides") for entry in document.get(name, [])}

    publisher.publish_all()
    return read


@pytest.fixture
def report(client_of_store, now, chat):
    """Send what an enforcer does with its usage, and drain that."""
    sent = iter(range(1, 1_000))

    def send(*rows, at=now, **changed):
        minute = int(at.timestamp()) // 60
        fields = {"project": chat.pk, "model": "gpt-x", "format": "openai-chat", "pattern": "gpt-*"}
        fields |= {"requests": 1, "added": 700}
        rows = rows or [[minute, *(fields | changed).values()]]
        used = [row(minute, project=chat.pk)]
        entry = {"id": f"proxy-1-{next(sent)}", "instance": "proxy-1", "rows": json.dumps(used)}
        stream = Keys().intake(chat.pk) if chat.has_intake else USAGE
        client_of_store.xadd(stream, {**entry, "broken": json.dumps(rows)})
        return drain(at, client_of_store)

    return send


def bounded_policy():
    policy = PolicyFactory(metering={"estimate": "bound"})
    LimitFactory(policy=policy, name="usd", unit="micros", quota=10_000_000)
    return policy


def test_a_broken_bound_reaches_every_process(store, client_of_store, actor):
    """The first one at once, the others by the next drain, which is audited, told of, and seen."""
    ModelPriceFactory(of_the_catalogue=True, pattern="gpt-*")
    policy = bounded_policy()
    project = ProjectFactory(policy=policy)
    with change(actor=actor) as tx:
        tx.created(policy)
        tx.created(project)
        _, secret = issue_token(tx, project=project, name="ci")
    publisher.publish_all()
    provider, reserved = Provider(), []

    async def answer(scope, body, receive, send):
        (record,) = open_reservations(client_of_store, Keys(), project.pk)
        reserved.append(record.about["input"])
        await whole(send, {"model": "gpt-x", "choices": [], "usage": provider.usage})

    async def one_process(*prompts):
        async with aio.Limiter(store.url, timeout=1.0, lookup=1.0) as limiter:
            for provider.usage["prompt_tokens"] in prompts:
                assert (await ask(LimitMiddleware(provider, limiter, metered=True), secret, HELLO)).status == 200

    provider.answer = answer
    run(one_process(3_000, 100))
    first = reserved[0]
    assert drain_task() > 0
    run(one_process(100))
    assert reserved == [first, 3_000, 3_000]
    assert first < 1_000

    entry = AuditEntry.objects.get(object_type="modeladdend")
    assert (entry.action, entry.actor, entry.channel) == ("modeladdend.update", "raise_addends", "task")
    assert (entry.before["added_tokens"], entry.after["added_tokens"]) == (0, 3_000 - first)
    add_usual()
    evaluate(timezone.now())
    assert [event.title for event in AlertEvent.objects.all()] == ["A bound of gpt-x (openai-chat) was broken"]


def test_an_addend_is_raised_once_in_ten_minutes(report, published, now):
    """To the most that was reported until then."""
    ModelPriceFactory(of_the_catalogue=True, pattern="gpt-*")
    seen = []
    for minutes, added in ((0, 700), (1, 900), (2, 800), (9, 100), (10, 50)):
        at = now + timedelta(minutes=minutes)
        report(added=added, at=at)
        raise_addends(at)
        seen.append(published()["gpt-*"]["added_tokens"])

    assert seen == [700, 700, 700, 700, 900]
    assert raise_addends(now + timedelta(hours=1)) == []


@pytest.mark.parametrize(
    ("fields", "after"),
    [
        ({"of_the_catalogue": True, "bounds": {"added_tokens": 2_000, "file": 9}}, 2_000),
        ({"of_the_catalogue": True, "bounds": {"added_tokens": 200}}, 700),
        ({"bounds": {"file": 9}}, 700),
        ({"bounds": {"added_tokens": 200}}, 200),
        ({"bounds": {"added_tokens": 0}}, 0),
    ],
    ids=["higher", "lower", "an operator's without one", "pinned", "pinned to none"],
)
def test_only_what_an_operator_has_not_set_is_raised(report, published, now, fields, after):
    price = ModelPriceFactory(pattern="gpt-*", **fields)
    report()
    raise_addends(now)
    publisher.publish_all()

    assert published()["gpt-*"]["added_tokens"] == after
    assert ModelPrice.objects.get().bounds == price.bounds
    assert AuditEntry.objects.filter(object_type="modeladdend").exists() == (after not in (0, 200))


@pytest.mark.parametrize(("added", "unbounded"), [(65_536, False), (65_537, True), (10**6, True), (2**50, True)])
def test_a_lie_raises_no_more_than_may_be_added(report, published, now, added, unbounded):
    """Beyond it, enforcers refuse the requests."""
    ModelPriceFactory(of_the_catalogue=True, pattern="gpt-*")
    report(added=added)
    raise_addends(now)

    entry = published()["gpt-*"]
    assert (entry["added_tokens"], entry.get("unbounded", False)) == (65_536, unbounded)
    report(added=2**50, at=now + timedelta(minutes=11))
    raise_addends(now + timedelta(minutes=11))
    assert raise_addends(now + timedelta(minutes=22)) == []
    assert ModelAddend.objects.get().tokens == BEYOND


@pytest.mark.parametrize("changed", [{"pattern": "gpt-x"}, {"pattern": ""}, {"pattern": "*"}, {"added": 0}])
def test_an_unknown_pattern_raises_nothing(report, now, changed):
    """It is told of all the same."""
    ModelPriceFactory(of_the_catalogue=True, pattern="gpt-*")
    report(**changed)

    assert raise_addends(now) == []
    assert not ModelAddend.objects.filter(reported__gt=0).exists()
    assert BrokenBound.objects.count() == 1


def test_whoever_may_not_write_for_all_raises_nothing(report, now, chat):
    """An account that is limited to projects, which writes to the intake of each."""
    chat.has_intake = True
    chat.save()
    ModelPriceFactory(of_the_catalogue=True, pattern="gpt-*")
    report()

    assert raise_addends(now) == []
    assert BrokenBound.objects.count() == 1


def test_what_is_kept_is_bounded(report, now, chat):
    """Rows may be forged."""
    minute = int(now.timestamp()) // 60
    rows = [[minute, chat.pk, f"m-{n % 9}", f"format-{n // 9}", "", 1, 0] for n in range(MAX_PAIRS + 9)]
    report(*rows)
    report(*rows)
    report(project="proj_unknown")

    assert BrokenBound.objects.count() == MAX_PAIRS + 1
    assert BrokenBound.objects.get(model="other").requests == 18
    assert {row["requests"] for row in lately(now - timedelta(hours=1))} >= {2}
    rollup.prune(now + timedelta(days=91))
    assert not BrokenBound.objects.exists()


def test_a_sum_of_lies_stops_no_usage(report, now):
    for number in range(6):
        report(requests=2**50, at=now + timedelta(seconds=number))

    assert BrokenBound.objects.get().requests == 2**52
    assert report(requests=1).counted == 1


def test_reports_are_added_and_the_most_counts(report, now, chat):
    for minutes, added in ((1, 700), (0, 900), (2, 0)):
        report(added=added, requests=2, at=now - timedelta(minutes=minutes))

    (found,) = lately(now - timedelta(hours=1))
    at = now.replace(second=0, microsecond=0)
    said = {"added": 900, "said": "up to 900 tokens"}
    assert found == {"model": "gpt-x", "format": "openai-chat", "requests": 6, "last_at": at, **said}
    assert lately(now + timedelta(hours=1)) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"project": ""}, "broken[0].project"),
        ({"model": "x" * 129}, "broken[0].model"),
        ({"format": "a\x00"}, "broken[0].format"),
        ({"pattern": "x" * 257}, "broken[0].pattern"),
        ({"requests": 0}, "broken[0].requests: must be an integer from 1"),
        ({"added": -1}, "broken[0].added"),
        ({"added": 2**60}, "broken[0].added"),
        ({"more": 1}, "broken[0]: must be a list of 7 fields"),
    ],
)
def test_a_wrong_row_is_set_aside(report, client_of_store, changed, reason):
    assert report(**changed).rejected == 1

    ((_, kept),) = client_of_store.xrange("sg:{usage}:stream:rejected")
    assert reason in kept["reason"]
    assert not BrokenBound.objects.exists()
