"""The worker keeps lost reservations in SQL, each once, and finishes what operators have begun."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.traffic.reservations import actions, listing, recording
from controlplane.traffic.reservations.models import Reservation, ReservationCount
from controlplane.traffic.usage.models import MeteredRow
from enforcement import Limit, Limiter
from enforcement.metering.charges import Counts
from enforcement.model.keys import Keys
from enforcement.plan.records import RecordKeys
from enforcement.store.errors import StoreError
from enforcement.store_calls import reservations
from enforcement.store_calls.reservations import settle_reservation
from tests.controlplane.traffic.reservations.conftest import lose
from tests.factories import ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

ANN = Actor("ann", "admin", "req-1")


def record(client_of_store, **later) -> int:
    return recording.record(timezone.now() + timedelta(**later), client_of_store)


def test_each_is_saved_once_and_counted(reserved, client_of_store):
    assert (record(client_of_store), Reservation.objects.count()) == (0, 0)
    count = ReservationCount.objects.get()
    assert (count.open, count.lost, count.lost_since) == (1, 0, None)

    lose(client_of_store, reserved)

    assert [record(client_of_store) for _ in range(3)] == [1, 0, 0]
    row = Reservation.objects.get()
    assert (row.pk, row.state, row.model, row.instance) == (reserved, "lost", "gpt-x", "proxy-2")
    count = ReservationCount.objects.get()
    assert (count.open, count.lost, count.lost_since.year) == (0, 1, 1970)


def test_a_run_that_has_no_time_left_is_continued_by_the_next(reserve, client_of_store, monkeypatch):
    """Other tasks wait for the worker. Each is saved once all the same."""
    monkeypatch.setattr(recording, "MOST_SECONDS", 0)
    monkeypatch.setattr(recording, "IDS_AT_ONCE", 2)
    ids = [reserve() for _ in range(5)]
    for one in ids:
        lose(client_of_store, one)

    assert [record(client_of_store) for _ in range(4)] == [2, 2, 1, 0]
    assert set(Reservation.objects.values_list("pk", flat=True)) == set(ids)


def test_one_that_its_process_prolongs_again_is_not_lost(reserved, client_of_store):
    """An enforcer of an earlier release does that, after it was only stopped for a while."""
    where = RecordKeys.from_id(Keys(), reserved)
    lose(client_of_store, reserved)
    record(client_of_store)
    client_of_store.zadd(where.index, {where.ident: 2**52})

    record(client_of_store)

    assert not Reservation.objects.exists()


def test_one_that_the_store_dropped_from_its_list_can_still_be_settled(api, reserved, client_of_store, used_by_limit):
    """A project with ten thousand of them has no room for more in its index."""
    where = RecordKeys.from_id(Keys(), reserved)
    lose(client_of_store, reserved)
    record(client_of_store)
    client_of_store.zrem(where.index, where.ident)
    record(client_of_store)

    assert [row["id"] for row in api("GET", "reservations?state=lost").json()["results"]] == [reserved]
    assert api("POST", f"reservations/{reserved}/release", {"reason": "x"}).status_code == 200
    assert used_by_limit()["tpm"] == 0


def test_one_that_was_settled_elsewhere_is_marked(api, reserved, client_of_store):
    lose(client_of_store, reserved)
    record(client_of_store)
    settle_reservation(client_of_store, Keys(), reserved, {"tokens": 1})

    record(client_of_store)

    (row,) = api("GET", "reservations?state=settled").json()["results"]
    assert (row["settled_as"], row["settled_by"], row["changes"]) == ("", "", [])
    answer = api("POST", f"reservations/{reserved}/release", {"reason": "x"})
    assert (answer.status_code, answer.json()["code"]) == (409, "already_settled")


def test_after_seven_days_its_estimate_counts(reserved, client_of_store):
    """The store has forgotten the record, so nobody can settle it any more."""
    lose(client_of_store, reserved)
    record(client_of_store)
    Reservation.objects.update(at=timezone.now() - timedelta(days=7))
    where = RecordKeys.from_id(Keys(), reserved)
    client_of_store.unlink(where.index, where.record)

    record(client_of_store)
    record(client_of_store)

    row = Reservation.objects.get()
    assert (row.state, row.settled_as) == ("settled", "estimated")
    counted = MeteredRow.objects.get(period="day")
    assert (counted.settled_as, counted.requests, counted.input, counted.output, counted.micros) == (
        *("estimated", 1, 100, 500, 2_100),
    )


def test_settled_ones_are_forgotten_after_thirty_days(api, reserved, client_of_store):
    api("POST", f"reservations/{reserved}/release", {"reason": "x"})
    now = timezone.now()

    assert recording.prune(now + timedelta(days=29)) == 0
    assert recording.prune(now + timedelta(days=31)) == 1


def order(reserved: str) -> None:
    with change(actor=ANN, reason="stuck") as tx:
        actions.settle(tx, reserved, actions.SettlementOrder(usage=Counts(90, 0, 0, 40)))


@pytest.mark.parametrize("version", [0, -1, 3], ids=["this", "earlier", "later"])
def test_the_worker_finishes_what_the_store_could_not(reserved, client_of_store, monkeypatch, used_by_limit, version):
    """
    The store stops between the audit and the correction. The worker makes it once, however often it runs, and also if
    another version has kept a different number of counts.
    """

    def away(*_):
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(actions, "_correct", away)
        with pytest.raises(actions.SettlementUnfinished):
            order(reserved)
    assert Reservation.objects.get().state == "settling"
    assert used_by_limit()["tpm"] == 600
    with pytest.raises(actions.AlreadySettled):
        order(reserved)
    row = Reservation.objects.get()
    row.order["counts"] = [*row.order["counts"], 0, 0, 0][: len(row.order["counts"]) + version]
    row.save()

    record(client_of_store)
    assert Reservation.objects.get().state == "settling"
    record(client_of_store, seconds=11)
    record(client_of_store, seconds=30)

    row = Reservation.objects.get()
    assert (row.state, row.settled_as, row.settled_by, used_by_limit()["tpm"]) == ("settled", "exact", "ann", 130)
    assert AuditEntry.objects.filter(object_type="reservation").count() == 1
    assert MeteredRow.objects.get(period="day").requests == 1


def test_a_lost_reply_does_not_lose_the_usage(reserved, client_of_store, monkeypatch, used_by_limit):
    """The store has corrected the counters, and its reply was lost."""
    really = actions._correct

    def reply_lost(row, client):
        really(row, client)
        raise ConnectionError("reset")

    with monkeypatch.context() as patch:
        patch.setattr(actions, "_correct", reply_lost)
        with pytest.raises(actions.SettlementUnfinished):
            order(reserved)
    record(client_of_store, seconds=11)

    assert Reservation.objects.get().state == "settled"
    assert used_by_limit()["tpm"] == 130
    assert MeteredRow.objects.get(period="day").settled_as == "exact"


def test_the_worker_does_not_take_the_settlement_of_the_process_for_its_own(
    reserved, client_of_store, monkeypatch, used_by_limit
):
    """The store was away when an operator settled, and the process came first when it was back."""

    def away(*_):
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(actions, "_correct", away)
        with pytest.raises(actions.SettlementUnfinished):
            order(reserved)
    settle_reservation(client_of_store, Keys(), reserved, {"tokens": 5})
    record(client_of_store, seconds=11)

    row = Reservation.objects.get()
    assert (row.state, row.settled_by, row.order, used_by_limit()["tpm"]) == ("settled", "", {}, 5)
    assert not MeteredRow.objects.exists()  # the process counts what it has settled
    entries = AuditEntry.objects.filter(object_type="reservation").order_by("id")
    assert [entry.action for entry in entries] == ["reservation.settle", "reservation.settled_elsewhere"]


def test_an_operator_who_comes_with_the_process_is_told(reserved, client_of_store, monkeypatch):
    """Between reading the record and correcting it, the process settles. Its settlement counts, and no other."""
    really = actions._correct

    def too_late(row, client):
        settle_reservation(client_of_store, Keys(), reserved, {"tokens": 5})
        return really(row, client)

    monkeypatch.setattr(actions, "_correct", too_late)
    with pytest.raises(actions.AlreadySettled):
        order(reserved)

    row = Reservation.objects.get()
    assert (row.state, row.settled_by, row.order) == ("settled", "", {})
    assert not MeteredRow.objects.exists()
    entries = AuditEntry.objects.filter(object_type="reservation").order_by("id")
    assert [entry.action for entry in entries] == ["reservation.settle", "reservation.settled_elsewhere"]


def test_metrics_have_the_numbers_of_each_project(client, reserved, client_of_store, settings):
    settings.METRICS_NETWORKS = ["127.0.0.0/8"]
    lose(client_of_store, reserved)
    record(client_of_store)

    text = client.get("/metrics").content.decode()

    assert 'sluicegate_reservations{project="chat",state="lost"} 1.0' in text
    assert 'sluicegate_reservations{project="chat",state="open"} 0.0' in text
    assert 'sluicegate_reservations{project="",state="lost"} 0.0' in text
    assert 'sluicegate_reservations_oldest_lost_seconds{project="chat"}' in text
    assert 'sluicegate_reservations_of_token{project="chat"} 1.0' in text


def test_those_of_limits_in_code_belong_to_nobody_here(store, client_of_store):
    with Limiter(store.url, timeout=2.0) as limiter:
        made = limiter.reserve(Limit(name="x", quota=5, window_seconds=60), "user:1", life=60)
        with pytest.raises(listing.Unknown):
            listing.read(made.id)


@pytest.fixture
def overdue(api, reserved, client_of_store):
    """``overdue(lost_after, since)``: settle what is overdue of one that is lost since so many seconds."""

    def settle(lost_after: int | None, since: int) -> int:
        if lost_after is not None:
            api("PATCH", "policies/budget", {"metering": {"lost_after": lost_after}})
        where, now = RecordKeys.from_id(Keys(), reserved), timezone.now()
        lost_at = int((now - timedelta(seconds=since)).timestamp() * 1e6)
        client_of_store.zadd(where.index, {where.ident: lost_at})
        record(client_of_store)
        return recording.settle_overdue(now, client_of_store)

    return settle


@pytest.mark.parametrize(
    ("lost_after", "since", "settled"),
    [(None, 3_500, 0), (None, 3_600, 1), (60, 10, 0), (60, 61, 1), (0, 0, 1), (604_800, 604_700, 0)],
)
def test_a_lost_one_is_settled_as_its_estimate_after_the_time_of_its_policy(
    api, reserved, overdue, client_of_store, used_by_limit, lost_after, since, settled
):
    """An hour if the policy says nothing. Its charge was there before, and its slot is free."""
    assert overdue(lost_after, since) == settled

    row = Reservation.objects.get()
    assert (row.state, row.settled_as, row.settled_by) == (
        ("settled", "estimated", "policy") if settled else ("lost", "", "")
    )
    assert (used_by_limit()["tpm"], used_by_limit()["usd"], used_by_limit()["slots"]) == (
        *(600, 2_100),
        0 if settled else 1,
    )
    assert (client_of_store.get(RecordKeys.from_id(Keys(), reserved).record) is None) is bool(settled)
    counted = list(MeteredRow.objects.filter(period="day").values_list("settled_as", "input", "output", "micros"))
    assert counted == ([("estimated", 100, 500, 2_100)] if settled else [])
    record(client_of_store)
    assert recording.settle_overdue(timezone.now(), client_of_store) == 0
    assert api("POST", f"reservations/{reserved}/release", {"reason": "x"}).status_code == (409 if settled else 200)


@pytest.mark.parametrize(("lost_after", "left"), [(None, 3_600), (60, 60), (604_800, 7 * 86_400)])
def test_the_page_says_until_when_it_can_be_settled(api, as_ann, reserved, overdue, lost_after, left):
    """By the time of its policy, and at most for seven days."""
    overdue(lost_after, 1)

    page = as_ann.get(f"/admin/reservations/reservation/{reserved}/settle/").content.decode()

    row = Reservation.objects.get()
    until = min(row.expires_at + timedelta(seconds=left), row.settled_until)
    assert f'<dt>Can be settled until</dt><dd><time datetime="{until:%Y-%m-%dT%H:%M:%S}' in page


def test_the_last_word_that_comes_later_changes_nothing(reserved, overdue, client_of_store, used_by_limit):
    """Its estimate is final, as it is after seven days."""
    assert overdue(0, 1) == 1
    assert settle_reservation(client_of_store, Keys(), reserved, {"tokens": 5}) is None
    assert used_by_limit()["tpm"] == 600


def test_an_operator_who_is_faster_wins(api, reserved, overdue, client_of_store, monkeypatch, used_by_limit):
    really = actions.settle_as_estimated

    def too_late(row, client, now):
        assert api("POST", f"reservations/{row.pk}/release", {"reason": "x"}).status_code == 200
        return really(row, client, now)

    monkeypatch.setattr(actions, "settle_as_estimated", too_late)
    assert overdue(0, 1) == 0
    assert (Reservation.objects.get().state, used_by_limit()["tpm"]) == ("released", 0)


def test_one_whose_store_goes_away_meanwhile_is_finished_later(reserved, overdue, client_of_store, monkeypatch):
    def away(*_):
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(actions, "_correct", away)
        with pytest.raises(ConnectionError):
            overdue(0, 1)
    assert Reservation.objects.get().state == "settling"
    record(client_of_store, seconds=11)
    assert (Reservation.objects.get().state, Reservation.objects.get().settled_as) == ("settled", "estimated")


def test_reservations_of_no_meter_have_a_life_of_their_own(store, secret, client_of_store):
    """Whoever makes one says how long it may take, and settles it within seven days."""
    with Limiter(store.url, timeout=2.0) as limiter:
        reserved = limiter.reserve(secret, costs={"tokens": 5}, life=60.0).id
        lose(client_of_store, reserved)
        record(client_of_store)
        assert recording.settle_overdue(timezone.now(), client_of_store) == 0
        assert limiter.settle(reserved, {"tokens": 3})


@pytest.fixture
def forged(client_of_store):
    """``forged(project)``: an overdue record of a metered request, as an account of the project may write one."""

    def write(project, *, token: str = "", number: int = 1, tag: str = "") -> RecordKeys:
        where = RecordKeys.of(Keys(), project.pk, f"{number:032x}")
        limit = {"name": "rpm", "algorithm": "fixed_window", "quota": 9, "window_seconds": 3600}
        bound = {"key": f"{Keys().scope(tag or project.pk)}c:1", "limit": limit, "scope": "token", "policy_id": "p"}
        said = {"v": 1, "project": project.pk, "token": token, "model": "gpt-x", "instance": "i", "input": 9}
        said |= {"costs": [1], "limits": [bound | {"policy": "p"}]}
        lost_us = int((timezone.now() - timedelta(days=2)).timestamp() * 1e6)
        client_of_store.set(where.record, f"{lost_us}|1|\n{json.dumps(said)}")
        client_of_store.zadd(where.index, {where.ident: lost_us})
        return where

    return write


def test_what_a_project_spoils_keeps_no_other_reservation_waiting(forged, client_of_store):
    """The counter of one has another type, so it cannot be settled; then its index has, too."""
    spoilt, honest = ProjectFactory(), ProjectFactory()
    where, others = forged(spoilt), [forged(honest, number=number) for number in (2, 3)]
    client_of_store.zadd(f"{Keys().scope(spoilt.pk)}c:1", {"x": 1})
    assert record(client_of_store) == 3

    assert recording.settle_overdue(timezone.now(), client_of_store) == 2
    last = forged(honest, number=4)
    assert record(client_of_store, minutes=1) == 1

    assert {one.id for one in (*others, where)} == set(
        Reservation.objects.exclude(state="lost").values_list("pk", flat=True)
    )
    Reservation.objects.filter(pk=where.id).update(state="lost")
    client_of_store.unlink(where.index, last.record)
    client_of_store.set(where.index, "x")
    client_of_store.zrem(last.index, last.ident)
    record(client_of_store)
    assert Reservation.objects.get(pk=last.id).state == "settled"


def test_an_index_that_changes_its_type_meanwhile_ends_no_list(forged, client_of_store, monkeypatch):
    where = forged(ProjectFactory())
    counted = reservations._counts
    client_of_store.zadd(where.index, {"x": 2**52})

    def replaced(client, index, now_us):
        client_of_store.unlink(index)
        client_of_store.set(index, "x")
        return counted(client, index, now_us)

    monkeypatch.setattr(reservations, "_counts", replaced)

    assert record(client_of_store) == 0
    assert reservations.lost_reservations(client_of_store, Keys(), where.id.partition(".")[0]) == {}
    assert reservations.open_reservations(client_of_store, Keys(), where.id.partition(".")[0]) == []


@pytest.mark.parametrize("spoil", [["ZADD", "-inf", "t"], ["SET", "x"]], ids=["no number", "another type"])
def test_a_count_of_tokens_that_is_spoilt_hides_no_lost_reservation(forged, client_of_store, spoil):
    """It is only shown. Whoever has an account of one project could else end the recording of all."""
    where, other = forged(ProjectFactory()), forged(ProjectFactory(), number=2)
    client_of_store.execute_command(spoil[0], f"{where.index}-of-tokens", *spoil[1:])

    assert record(client_of_store) == 2
    assert set(Reservation.objects.values_list("pk", flat=True)) == {where.id, other.id}


def test_no_record_names_the_token_of_another_project(forged, client_of_store):
    """Its page would show usage that it never had."""
    other = TokenFactory()
    forged(ProjectFactory(), token=other.pk)
    record(client_of_store)

    assert recording.settle_overdue(timezone.now(), client_of_store) == 1
    assert not MeteredRow.objects.exists()


@pytest.mark.parametrize("costs", [{"requests": 0}, {"requests": 5}], ids=["returned", "charged"])
def test_no_editor_has_a_forged_record_correct_a_global_counter(forged, client_of_store, costs):
    """The account of the store may have no right on it, and the record says that it is another one's."""
    where = forged(ProjectFactory(has_intake=True), tag="global")
    order = actions.SettlementOrder(costs=costs)

    with pytest.raises(actions.AddsToGlobal), change(actor=ANN, reason="x") as tx:
        actions.settle(tx, where.id, order, charges_global=False)


def test_settlements_of_one_project_do_not_keep_those_of_others_waiting(monkeypatch):
    """A project forges any number of records that cannot be corrected. A run ends in time, and others go on."""
    now = timezone.now()
    for number, project in enumerate(["evil"] * 5 + ["honest"]):
        settled_at = now - timedelta(minutes=60 - number)
        fields = {"project_id": project, "at": now, "expires_at": now, "state": "settling", "settled_at": settled_at}
        Reservation.objects.create(id=f"{project}.{number:032x}", **fields)
    tried: list[str] = []

    def correct(row, client):
        tried.append(row.project_id)
        raise StoreError("protocol", "spoilt")

    monkeypatch.setattr(actions, "_correct", correct)
    actions.finish_pending(now, None)
    assert tried == ["evil", "honest", *["evil"] * 4]

    tried.clear()
    actions.finish_pending(now, None, seconds=-1)
    assert tried == []
