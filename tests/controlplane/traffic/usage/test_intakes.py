"""The intakes of projects: what an account of the store that is limited to one writes there harms no other."""

import json
import logging

import pytest
from django.db.models import Sum

from controlplane.releases.publishing import compile
from controlplane.traffic.stream import batches, streams
from controlplane.traffic.usage import drain as drain_module
from controlplane.traffic.usage import folding
from controlplane.traffic.usage.drain import DrainResult, drain
from controlplane.traffic.usage.models import (
    DecisionCount,
    DeniedRequest,
    EstimateSample,
    MeteredRow,
    UsageBatch,
    UsageRow,
)
from enforcement.logs import RateLimitedLogger
from enforcement.metering.broken import BROKEN_NAMES
from enforcement.metering.tally import COUNT_NAMES
from enforcement.model.keys import Keys
from enforcement.model.strict_json import dumps
from enforcement.state.published import PublishedState
from tests.controlplane.traffic.usage.conftest import NOON, NOON_MINUTE, USAGE, row
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

KEYS = Keys()


@pytest.fixture
def shop():
    return ProjectFactory(slug="shop", has_intake=True)


@pytest.fixture
def send(client_of_store, shop):
    """``send("id-1", rows=[...])`` writes to the intake of the shop, as a limited account does."""

    def write(batch_id: str = "proxy-1-1", **fields: list) -> str:
        entry = {"id": batch_id, "instance": "proxy-1", "rows": "[]"}
        return client_of_store.xadd(KEYS.intake(shop.pk), entry | {name: json.dumps(it) for name, it in fields.items()})

    return write


def counted(**which) -> dict[tuple[str, str], int]:
    """Allowed requests by project and token."""
    rows = UsageRow.objects.filter(period="minute", **which).values_list("project_id", "token_id")
    return {tuple(names): allowed for *names, allowed in rows.annotate(Sum("allowed"))}


def set_aside(client, shop) -> list[dict[str, str]]:
    return [fields for _, fields in client.xrange(f"{KEYS.intake(shop.pk)}:rejected")]


def test_usage_of_an_intake_is_counted_beside_that_of_all(send, shop, report_usage, client_of_store):
    """Its denials too. Only intakes that SQL knows are read."""
    token = TokenFactory(project=shop)
    send(rows=[row(project=shop.pk, token=token.pk, allowed=3)])
    denial = ["dec_1", NOON_MINUTE * 60_000, "limited", shop.pk, token.pk, "", "", {"ip": "::1"}]
    client_of_store.xadd(KEYS.intake(shop.pk), {"instance": "proxy-1", "denials": json.dumps([denial])})
    client_of_store.xadd(KEYS.intake("proj_other"), {"id": "1", "rows": json.dumps([row()])})
    report_usage("proxy-1-1", row())

    assert drain(NOON) == DrainResult(counted=2)
    assert counted() == {(shop.pk, token.pk): 3, ("proj_1", "tok_1"): 1}
    assert DeniedRequest.objects.get().token_id == token.pk
    assert (client_of_store.xlen(KEYS.intake(shop.pk)), client_of_store.xlen(KEYS.intake("proj_other"))) == (0, 1)


def test_a_row_of_another_project_is_set_aside(send, shop, client_of_store, caplog):
    """The ids of others are no secret. What is honest beside it counts."""
    policy, other = PolicyFactory(project=shop), TokenFactory()
    theirs, shared = PolicyFactory(project=other.project), PolicyFactory()
    metered = [NOON_MINUTE, other.project_id, other.pk, "gpt-4o", "exact", 0, 0, *[9] * len(COUNT_NAMES)]
    broken = [NOON_MINUTE, other.project_id, "gpt-4o", "openai", "", 1, 0]
    assert len(broken) == len(BROKEN_NAMES)
    send(
        rows=[
            row(project=other.project_id, token=other.pk, allowed=10**6),
            row(project=shop.pk, token=other.pk),
            row(project=shop.pk, token="", policy=theirs.pk, limit="rpm"),
            row(project=shop.pk, token="", policy=policy.pk, limit="rpm"),
            row(project=shop.pk, token="", policy=shared.pk, limit="rpm"),
        ],
        metered=[metered, [*metered[:1], shop.pk, *metered[2:]]],
        broken=[broken],
    )

    assert drain(NOON) == DrainResult(counted=1, rejected=1)
    assert counted() == {(shop.pk, ""): 2}
    assert set(DecisionCount.objects.values_list("policy_id", flat=True)) == {policy.pk, shared.pk}
    assert not MeteredRow.objects.exists()
    other.refresh_from_db()
    assert other.last_used_at is None
    [kept] = set_aside(client_of_store, shop)
    assert [field for field, _ in json.loads(kept["refused"])] == [
        "rows",
        "metered",
        "broken",
        "rows",
        "rows",
        "metered",
    ]
    assert "6 rows of the usage entry" in caplog.text


def test_a_denial_of_another_project_is_dropped(shop, client_of_store):
    """Of another token too."""
    other = TokenFactory()
    for project, token in ((other.project_id, other.pk), (shop.pk, other.pk)):
        denial = [f"dec_{project}", NOON_MINUTE * 60_000, "limited", project, token, "", "", {}]
        client_of_store.xadd(KEYS.intake(shop.pk), {"denials": json.dumps([denial])})

    drain(NOON)

    assert not DeniedRequest.objects.exists()
    assert client_of_store.xlen(KEYS.intake(shop.pk)) == 0


def test_no_intake_has_the_batch_of_another_one_taken_for_counted(send, shop, report_usage):
    """Whoever guesses an id must not keep its usage out of SQL."""
    send("proxy-2-1", rows=[row(project=shop.pk, token="")])
    drain(NOON)
    report_usage("proxy-2-1", row())

    assert drain(NOON) == DrainResult(counted=1)
    assert sorted(UsageBatch.objects.values_list("batch_id", flat=True)) == ["proxy-2-1", f"proxy-2-1/{shop.pk}"]


def test_what_holds_for_all_is_learned_from_no_intake(send, shop):
    """Samples of all projects make the estimates of all."""
    width = 1 + len(batches.SAMPLE_NAMES) + len(batches.SAMPLE_NUMBERS)
    sample = [NOON_MINUTE // 1440, shop.pk, "", "gpt-4o", "openai", "", *[1] * len(batches.SAMPLE_NUMBERS)]
    assert len(sample) == width
    send(rows=[row(project=shop.pk, token="")], samples=[sample])

    assert drain(NOON) == DrainResult(counted=1)
    assert not EstimateSample.objects.exists()


def test_intakes_and_shared_streams_take_turns(send, shop, report_usage, monkeypatch):
    """An intake that is never empty takes no more than half of the time."""
    monkeypatch.setattr("controlplane.traffic.usage.drain.ENTRIES_AT_ONCE", 1)
    read = []
    usual = streams.UsageStream.claimed
    monkeypatch.setattr(
        streams.UsageStream, "claimed", lambda self, *given: read.append(self.key) or usual(self, *given)
    )
    for number in range(3):
        report_usage(f"proxy-1-{number}", row())
        send(f"proxy-1-{number}", rows=[row(project=shop.pk, token="")])

    assert drain(NOON).counted == 6
    assert read[:6] == [USAGE, KEYS.intake(shop.pk)] * 3


def test_the_documents_name_the_projects_with_an_intake(shop):
    """An older enforcer reads the documents of the project as before. Without an intake there is none."""
    documents = {name: dumps(document) for name, document in compile.all_documents().items()}
    state = PublishedState()

    assert "intake" not in documents[f"project:{shop.pk}"]
    assert state.load({"revision": "1", "store_id": "a", **documents}) == []
    assert state.current.intakes == {shop.pk}
    assert compile.count_documents() == len(documents)
    shop.delete()
    assert "intakes" not in compile.all_documents()


def test_tokens_that_nobody_has_make_one_row(send, shop, monkeypatch, caplog):
    """An account of a project names any number of tokens. A token that was deleted keeps its usage."""
    monkeypatch.setattr(folding, "often", RateLimitedLogger(logging.getLogger("controlplane")))
    deleted = TokenFactory(project=shop)
    send(rows=[row(project=shop.pk, token=deleted.pk)])
    drain(NOON)
    deleted_id = deleted.pk
    deleted.delete()
    metered = [[NOON_MINUTE, shop.pk, f"tok_{n}", "gpt-4o", "exact", 0, 0, *[9] * len(COUNT_NAMES)] for n in range(50)]
    made_up = [row(project=shop.pk, token=f"tok_{n}") for n in range(50)]
    send("proxy-1-2", rows=[*made_up, row(project=shop.pk, token=deleted_id), row(project=shop.pk)], metered=metered)
    send("proxy-1-3", rows=made_up)

    drain(NOON)
    drain(NOON)

    assert {token: allowed for (_, token), allowed in counted().items()} == {deleted_id: 2, "unknown": 100 + 1}
    assert set(MeteredRow.objects.values_list("token_id", flat=True)) == {"unknown"}
    assert f"50 tokens in the intake of {shop.pk} are not known" in caplog.text


def test_limits_that_nobody_has_make_one_row_of_each_policy(send, shop):
    """Of a policy that nobody has, too. Those of the project and those of all projects count by themselves."""
    own = LimitFactory(policy=PolicyFactory(project=shop), name="rpm").policy
    shared = LimitFactory(policy=PolicyFactory(), name="rpm").policy
    made_up = [row(project=shop.pk, token="", policy=own.pk, limit=f"limit-{n}") for n in range(50)]
    made_up += [row(project=shop.pk, token="", policy=f"pol_{n}", limit="rpm") for n in range(50)]
    made_up += [row(project=shop.pk, token="", unit=f"unit-{n}") for n in range(50)]
    real = [row(project=shop.pk, token="", policy=policy.pk, limit="rpm", allowed=7) for policy in (own, shared)]
    send(rows=[*made_up, *real])

    drain(NOON)

    names = ("policy_id", "limit_name", "unit")
    found = UsageRow.objects.filter(period="minute").values_list(*names, "allowed")
    assert {tuple(of): allowed for *of, allowed in found} == {
        (own.pk, "rpm", "requests"): 7,
        (shared.pk, "rpm", "requests"): 7,
        (own.pk, "unknown", "unknown"): 50,
        ("unknown", "unknown", "unknown"): 100,
    }


def test_models_and_revisions_of_an_intake_are_bounded_by_day(send, shop, monkeypatch):
    """Clients choose the names of models, and the account everything else. What was counted before is known."""
    monkeypatch.setattr(folding, "MOST_METERED", 3)
    monkeypatch.setattr(folding, "_met", set())

    def metered(model: str, word: str = "exact", revision: int = 0) -> list:
        return [NOON_MINUTE, shop.pk, "", model, word, 0, revision, *[9] * len(COUNT_NAMES)]

    send("1", metered=[metered("gpt-4o")])
    drain(NOON)
    send("2", metered=[metered("gpt-4o", f"word-{n}", n) for n in range(50)])
    drain(NOON)
    folding._met.clear()
    send("3", metered=[metered(f"gpt-{n}") for n in range(50)] + [metered("gpt-4o")])
    drain(NOON)

    found = MeteredRow.objects.filter(period="minute").values_list("model", "settled_as", "requests")
    assert {(model, word): requests for model, word, requests in found} == {
        ("gpt-4o", "exact"): 18,
        ("gpt-4o", "word-0"): 9,
        ("gpt-4o", "word-1"): 9,
        ("", "unknown"): 9 * 98,
    }


def test_the_latest_denials_of_an_intake_are_kept(shop, client_of_store, monkeypatch):
    monkeypatch.setattr(drain_module, "MOST_DENIALS", 4)
    DeniedRequest.objects.create(decision="other", at=NOON, reason="limited", project_id="proj_other")
    for start in (0, 3):
        rows = [
            [f"dec_{n}", NOON_MINUTE * 60_000 + n, "limited", shop.pk, "", "", "", {}] for n in range(start, start + 3)
        ]
        client_of_store.xadd(KEYS.intake(shop.pk), {"denials": json.dumps(rows)})

    drain(NOON)

    kept = DeniedRequest.objects.values_list("decision", flat=True)
    assert set(kept) == {"other", *(f"dec_{n}" for n in range(2, 6))}
