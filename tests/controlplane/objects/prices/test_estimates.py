"""Numbers for estimates: learned from usage, of no tenant alone, and published with the prices."""

import json
import random
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import connection

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.prices import estimates, tasks
from controlplane.objects.prices.actions import learn_estimates
from controlplane.objects.prices.models import LearnedEstimate
from controlplane.releases.publishing.models import Revision
from controlplane.releases.publishing.reconcile import reconcile
from controlplane.traffic.usage.drain import drain
from controlplane.traffic.usage.models import EstimateSample
from controlplane.traffic.usage.rollup import MOST_SAMPLED, prune
from enforcement.metering import typical
from enforcement.metering.amounts import Usage
from enforcement.metering.opening import Opening, open_request
from enforcement.metering.price_documents import parse_prices
from enforcement.metering.prices import NO_PRICES, Prices
from enforcement.metering.request import MeteredRequest, read_request
from enforcement.metering.samples import MAX_SUM
from enforcement.metering.settlement import Settlement
from enforcement.metering.typical import shipped_tokens
from enforcement.model.limits import Limit
from enforcement.model.metered import Metering
from enforcement.usage.counts import UsageLog
from tests import fit_estimates
from tests.controlplane.conftest import at_once
from tests.controlplane.traffic.usage.conftest import USAGE
from tests.enforcement.metering.recorded_vectors import FAMILIES, vectors_of
from tests.factories import LearnedEstimateFactory, ManagementKeyFactory, ModelPriceFactory, ProjectFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
LIMIT = Limit(name="tpm", unit="tokens", quota=10**9, window_seconds=60)
LEAF = "other/my-llm/openai-chat"


def asked(model="my-llm", size=400, **more) -> MeteredRequest:
    """Return a request with a text of this size."""
    body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "x" * size}], **more}
    found = read_request("POST", "/v1/chat/completions", lambda name: None, json.dumps(body).encode())
    assert isinstance(found, MeteredRequest)
    return found


def opened(one: MeteredRequest, prices: Prices) -> Opening:
    found = open_request(one, [LIMIT], Metering(), prices, 0)
    assert isinstance(found, Opening)
    return found


@pytest.fixture
def lived(client_of_store):
    """Report requests with the tokens that the provider has said, a day before NOON, and drain them."""

    def report(rows, project="proj_1", token="tok_1", calls=0, days=1):
        log = UsageLog(f"proxy-{project}-{days}")
        at_us = int((NOON - timedelta(days=days)).timestamp()) * 1_000_000
        for one, tokens in rows:
            settlement = Settlement("exact", (0,), Usage(tokens, output=5, calls=calls))
            log.metering().settled((project, token), at_us, opened(one, NO_PRICES), settlement)
        for batch in log.drain():
            client_of_store.xadd(USAGE, batch.fields())
        assert drain(NOON, client_of_store).rejected == 0

    return report


def times(factor, size=4_000, count=20, **more):
    """Return requests that have so many times the tokens that are expected."""
    one = asked(size=size, **more)
    return [(one, round(shipped_tokens(one) * factor))] * count


@pytest.fixture
def published(client_of_store):
    """The prices that an enforcer would read."""

    def read() -> Prices:
        text = client_of_store.get("sg:{doc}:prices")
        return parse_prices(text) if text else NO_PRICES

    return read


def test_numbers_are_learned_and_published_with_their_audit(store, actor, lived, published):
    ModelPriceFactory(pattern="gpt-*")
    lived(times(1.5, count=200))

    tx, (found,) = learn_estimates(actor, NOON, "weekly")
    assert str(found).startswith(f"{LEAF}: shipped -> 0.3")
    assert str(found).endswith("by 200 requests of 1 projects")
    assert 1_400 <= opened(asked(size=4_000), published()).estimate.input <= 1_500
    assert published().prices == ()
    assert published().revision == tx.revision
    entry = AuditEntry.objects.get(action="learnedestimate.create")
    assert (entry.reason, entry.before, entry.after["name"], entry.after["error"]) == ("weekly", None, LEAF, 333)
    assert reconcile(full=True) == []


def test_a_run_that_is_repeated_changes_nothing(store, actor, lived):
    lived(times(1.5))
    learn_estimates(actor, NOON)
    for later in (0, 5, 11):
        tx, found = learn_estimates(actor, NOON + timedelta(hours=later))
        assert (tx.is_empty, found) == (True, [])
    assert (Revision.objects.count(), AuditEntry.objects.count()) == (1, 1)


def test_of_two_workers_at_once_one_publishes(store, actor, lived):
    """Also if one of them was killed before its commit: then the other one finds what it would have found."""
    lived(times(1.5))

    def work():
        with closing(connection):
            return len(learn_estimates(actor, NOON)[1])

    assert sorted(at_once([work] * 3)) == [0, 0, 1]
    assert AuditEntry.objects.count() == 1


@pytest.mark.parametrize(
    ("rows", "days"),
    [
        (times(1.5, count=19), 1),
        (times(1.5), 8),
        (times(1.02, count=100), 1),
        ([(asked(tools=[{"type": "web_search"}, {"type": "mcp"}]), 90_000)] * 20, 1),
    ],
    ids=["few requests", "a week ago", "too small a change", "two tools of the provider"],
)
def test_what_says_too_little_changes_nothing(store, actor, lived, rows, days):
    lived(rows, days=days)
    assert learn_estimates(actor, NOON)[1] == []


def test_today_says_nothing(store, actor, lived):
    """It is not over, and each run would find something else."""
    lived(times(1.5))
    EstimateSample.objects.update(day=NOON.replace(hour=0))
    assert learn_estimates(actor, NOON)[1] == []


def test_a_tool_of_the_provider_is_learned_by_its_uses(store, actor, lived, published):
    """Its versions are one kind."""
    one = asked(tools=[{"type": "web_search_20250305"}])
    text = typical.shipped_numbers("my-llm", "openai-chat").tokens(one.text_bytes, one.objects, one.tools)
    lived([(one, text + 48_000)] * 20, calls=4)

    learn_estimates(actor, NOON)
    assert published().learned.tools == {"web_search": 12_000}
    other = asked(tools=[{"type": "web_search_20260209", "max_uses": 2}])
    assert opened(other, published()).estimate.input == pytest.approx(24_100, abs=20)


def test_a_lie_moves_no_estimate_out_of_its_band(store, actor, client_of_store, lived, published):
    """Of three projects one reports a million times its tokens; then it does so alone."""
    requests = [asked(size=size, **more) for size in (40, 4_000, 40_000) for more in ({}, {"tools": [{}]})]
    shipped = [shipped_tokens(one) for one in requests]
    lived(times(1.1, count=50), "proj_1")
    lived(times(0.95, count=50), "proj_2")
    _lie(lived, "proj_3", 10**6)
    learn_estimates(actor, NOON)
    _within(requests, shipped, published())
    # The others say what they have used, and the one in the middle counts.
    assert opened(asked(size=4_000), published()).estimate.input == pytest.approx(1_100, rel=0.3)

    for factor in (10**6, 0):
        EstimateSample.objects.all().delete()
        _lie(lived, "proj_3", factor)
        learn_estimates(actor, NOON)
        _within(requests, shipped, published())


def _lie(lived, project, factor):
    """Report what is a million times as much as it was, in all that an entry of usage may say."""
    lived(times(min(factor, 1.0), count=20), project)
    rows = EstimateSample.objects.filter(project_id=project)
    for row in rows:
        for name in (name for name in estimates._PLACES if name.endswith("_tokens") or name == "reported"):
            setattr(row, name, min(getattr(row, name) * factor, MAX_SUM))
        row.save()


def _within(requests, shipped, prices):
    found = [opened(one, prices).estimate.input for one in requests]
    assert all(one / 2 <= now <= 2 * one for one, now in zip(shipped, found, strict=True)), (shipped, found)


@pytest.mark.parametrize(
    "changed",
    [
        dict.fromkeys(estimates._PLACES, MAX_SUM),
        dict.fromkeys(estimates._PLACES, 0),
        {"requests": MAX_SUM, "bytes_objects": MAX_SUM, "any_tokens": MAX_SUM},
        {"bytes_bytes": 0, "bytes_tokens": MAX_SUM},
        {"requests": MAX_SUM, "one_one": MAX_SUM},
    ],
    ids=["all as large as may be", "nothing", "what cannot be", "tokens of nothing", "a million times the requests"],
)
def test_sums_that_are_made_up_stop_nobody(store, actor, lived, published, changed):
    """Others learn all the same, and no estimate leaves its band."""
    for project in ("proj_1", "proj_2"):
        lived(times(1.5, count=100), project)
    lived(times(1, count=20), "evil")
    EstimateSample.objects.filter(project_id="evil").update(**{"requests": 20} | changed)

    learn_estimates(actor, NOON)
    _within([asked(size=4_000)], [1_000], published())
    assert opened(asked(size=4_000), published()).estimate.input > 1_200


@pytest.mark.parametrize(
    "changed", [{"requests": 0}, {"requests": MOST_SAMPLED}], ids=["of no requests", "of more than there can be"]
)
def test_sums_that_are_made_up_stop_no_run(store, actor, lived, changed):
    """Nobody else has a vote here, and those of many tokens are added up."""
    lived(times(1.5, count=20), "proj_1")
    EstimateSample.objects.update(bytes_bytes=0)
    for number in range(5):
        lived(times(1.5, count=20), "evil", f"tok_{number}")
    EstimateSample.objects.filter(project_id="evil").update(**changed)

    learn_estimates(actor, NOON)


def test_many_tokens_of_one_project_have_one_vote(store, actor, lived, published):
    """However much they send."""
    for project in ("proj_1", "proj_2"):
        lived(times(1.2, count=40), project)
    for number in range(4):
        lived(times(0.5, count=100), "evil", f"tok_{number}")

    learn_estimates(actor, NOON)
    assert 1_000 <= opened(asked(size=4_000), published()).estimate.input <= 1_200


def test_made_up_names_do_not_take_all_places(monkeypatch, store, actor, lived):
    """The models of more projects come first, and those of which something was learned keep it."""
    monkeypatch.setattr(estimates, "MAX_LEARNED", 2)
    LearnedEstimateFactory(name="other/kept/openai-chat")
    lived(times(1.9, model="kept"))
    lived(times(1.9, model="made-up", count=100))
    for project in ("proj_2", "proj_3"):
        lived(times(1.9, model="wanted"), project)

    learn_estimates(actor, NOON)
    assert list(LearnedEstimate.objects.all().by_name()) == ["other/kept/openai-chat", "other/wanted/openai-chat"]


def test_what_nobody_uses_is_forgotten(store, actor, lived, published):
    """The last one takes the document with it."""
    LearnedEstimateFactory(name=LEAF)
    LearnedEstimateFactory(kind="tool", name="dream", numbers=[7])
    lived(times(1), days=89)
    _, found = learn_estimates(actor, NOON)
    assert [str(one) for one in found] == ["dream: 7 tokens a use -> shipped, not used in 90 days"]
    assert list(published().learned.groups) == [LEAF]
    learn_estimates(actor, NOON + timedelta(days=2))
    assert published() == NO_PRICES
    assert not LearnedEstimate.objects.exists()


@pytest.mark.proof
def test_half_of_the_recorded_requests_teach_the_other_half(monkeypatch, store, actor, lived, published):
    """From an empty start. The shipped numbers are those of the same half, so that nothing knows the other one."""
    for seed in range(scale(1, 3)):
        EstimateSample.objects.all().delete()
        LearnedEstimate.objects.all().delete()
        teach, judge = _halves(seed)
        numbers = fit_estimates.fit([row for row, _ in teach])
        monkeypatch.setattr(typical, "SHIPPED", numbers)
        monkeypatch.setattr(estimates, "SHIPPED", numbers)
        typical.shipped_numbers.cache_clear()
        try:
            lived([(one, row.tokens) for row, one in teach])
            assert learn_estimates(actor, NOON)[1]
            found = [(opened(one, published()).estimate.input, row.tokens) for row, one in judge]
        finally:
            typical.shipped_numbers.cache_clear()
        assert sum(abs(one - due) for one, due in found) / sum(due for _, due in found) < 0.30  # 0.24


def _halves(seed):
    """Return the recorded requests of text alone, in two halves, each after what was counted in it."""
    found = []
    for family in scale(["anthropic-messages", "cohere-chat-v2", "bedrock-converse-stream"], FAMILIES):
        for vector in vectors_of(family):
            (row,) = [*fit_estimates.recorded_of(vector)] or (None,)
            if row is not None and not row.own_tools:
                found.append((row, fit_estimates.read_of(vector)))
    random.Random(seed).shuffle(found)
    return found[::2], found[1::2]


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, 30_000, "samples[0].minute"),
        (0, "x", "samples[0].minute"),
        (1, "", "samples[0].project_id"),
        (4, "", "samples[0].interface"),
        (5, "x" * 41, "samples[0].tool"),
        (6, -1, "samples[0].requests"),
        (9, MAX_SUM + 1, "samples[0].error"),
        (10, True, "samples[0].bytes_bytes"),
    ],
)
def test_a_wrong_row_sets_its_batch_aside(client_of_store, place, value, reason):
    row = [int(NOON.timestamp()) // 86_400, "proj_1", "tok_1", "gpt-x", "openai-chat", "", *[1] * 22]
    row[place] = value
    fields = {"id": "proxy-1-1", "instance": "proxy-1", "rows": "[]", "samples": json.dumps([row])}
    client_of_store.xadd(USAGE, fields)

    assert drain(NOON, client_of_store).rejected == 1
    ((_, kept),) = client_of_store.xrange("sg:{usage}:stream:rejected")
    assert reason in kept["reason"]


def test_sums_stay_at_their_greatest(client_of_store):
    """Whatever comes, all of it is counted, and other rows beside it."""
    row = [int(NOON.timestamp()) // 86_400, "proj_1", "tok_1", "gpt-x", "openai-chat", "", *[MAX_SUM] * 22]
    rows = [[*row[:2], f"tok_{number}", *row[3:]] for number in range(5)]
    for number in range(2):
        fields = {"id": f"p-{number}", "instance": "p", "rows": "[]", "samples": json.dumps(rows)}
        client_of_store.xadd(USAGE, fields)
        assert drain(NOON, client_of_store).rejected == 0
        EstimateSample.objects.filter(bytes_bytes=MAX_SUM).update(bytes_bytes=MOST_SAMPLED - 1)

    assert [row.bytes_bytes for row in EstimateSample.objects.all()] == [MOST_SAMPLED] * 5
    assert len(estimates.measure(NOON + timedelta(days=1))) == 1


def test_samples_are_kept_as_long_as_other_days(lived):
    lived(times(1))
    prune(NOON + timedelta(days=727))
    assert EstimateSample.objects.count() == 1
    prune(NOON + timedelta(days=731))
    assert EstimateSample.objects.count() == 0


def test_a_store_that_is_away_delays_the_publication(store, actor, lived):
    lived(times(1.5))
    store.kill()
    tx, found = learn_estimates(actor, NOON)
    assert (tx.revision, len(found)) == (None, 1)
    assert list(LearnedEstimate.objects.all().by_name()) == [LEAF]


def test_the_task_learns_from_the_days_before_now(store, monkeypatch, lived):
    lived(times(1.5))
    monkeypatch.setattr(tasks.timezone, "now", lambda: NOON)
    assert [tasks.learn_estimates(), tasks.learn_estimates()] == [1, 0]
    assert AuditEntry.objects.get().channel == "task"


def test_the_command_shows_the_difference_before_it_publishes(store, capsys, monkeypatch, lived, published):
    lived(times(1.5))
    monkeypatch.setattr("django.utils.timezone.now", lambda: NOON)
    call_command("learn_estimates", "--dry-run")
    line, outcome = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{LEAF}: shipped -> ")
    assert outcome == "Nothing was changed, because of --dry-run."
    assert published() == NO_PRICES
    call_command("learn_estimates", "--reason", "by hand")
    assert capsys.readouterr().out == f"{line}\nPublished as revision 1.\n"
    call_command("learn_estimates")
    assert capsys.readouterr().out == "Nothing was changed.\n"


def test_what_was_learned_is_listed_over_rest(store, api):
    LearnedEstimateFactory(name="openai/gpt-5", requests=60, projects=2)
    LearnedEstimateFactory(kind="tool", name="web_search", numbers=[9_000], error=None)

    row, other = api("GET", "prices/estimates").json()["results"]
    assert {**row, "changed_at": ""} == {
        "kind": "group",
        "name": "openai/gpt-5",
        "numbers": [300_000, 0, 0, 0, 0],
        "requests": 60,
        "projects": 2,
        "error": 200,
        "changed_at": "",
    }
    assert api("GET", "prices/estimates?name=web_search").json()["results"] == [other]
    assert api("GET", "prices/estimates?surprise=1").status_code == 400
    assert api("PUT", "prices/estimates", {}).status_code == 405


def test_what_was_learned_is_shown_to_those_who_see_all_projects(store, call):
    """It says which models the other projects ask for."""
    limited = ManagementKeyFactory(scopes=["prices:read"], all_projects=False)
    limited.projects.set([ProjectFactory()])
    assert call("GET", "prices/estimates", key=limited).status_code == 403
    assert call("GET", "prices/estimates", key=ManagementKeyFactory(scopes=["policies:read"])).status_code == 403
    assert call("GET", "prices/estimates", key=ManagementKeyFactory(scopes=["prices:read"])).status_code == 200
