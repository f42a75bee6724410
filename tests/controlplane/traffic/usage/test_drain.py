import json
import signal
from datetime import timedelta

import psycopg
import pytest
from django.db import connection
from django.db.models import Sum
from django.utils import timezone

from controlplane.core import transactions
from controlplane.core.locks import hold
from controlplane.traffic.callers import recording
from controlplane.traffic.callers.models import RecordedDay, RecordedMinute
from controlplane.traffic.stream import batches
from controlplane.traffic.stream.streams import UsageStream
from controlplane.traffic.usage import drain as drainer
from controlplane.traffic.usage import tasks
from controlplane.traffic.usage.drain import DrainResult, drain
from controlplane.traffic.usage.models import UsageBatch, UsageRow
from enforcement.store.client import STORE_ERRORS
from tests.controlplane.forks import wait_until_stopped
from tests.controlplane.traffic.usage.conftest import NOON, NOON_MINUTE, USAGE, row
from tests.factories import TokenFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)

REJECTED = "sg:{usage}:stream:rejected"


def total(period: str = "minute") -> int:
    return UsageRow.objects.filter(period=period).aggregate(total=Sum("allowed"))["total"] or 0


def test_a_batch_arrives_in_sql(report_usage, client_of_store):
    """What an enforcer reported is a row of its minute, and the stream is empty again."""
    report_usage("proxy-1-1", row(allowed=3, denied=2, would_deny=1, cost=3))

    assert drain(NOON) == DrainResult(counted=1)
    minute = UsageRow.objects.get(period="minute")
    assert (minute.at, minute.project_id, minute.token_id, minute.unit) == (NOON, "proj_1", "tok_1", "requests")
    assert (minute.allowed, minute.denied, minute.would_deny, minute.cost) == (3, 2, 1, 3)
    assert client_of_store.xlen(USAGE) == 0


def test_batches_of_one_minute_add_up(report_usage):
    """Three proxies that report the same token make one row."""
    for number in range(3):
        report_usage(f"proxy-{number}-1", row(allowed=10, cost=10))

    drain(NOON)

    assert (UsageRow.objects.filter(period="minute").count(), total()) == (1, 30)


def test_a_later_drain_adds_to_the_row(report_usage):
    """A minute is reported in pieces."""
    for number in range(3):
        report_usage(f"proxy-1-{number}", row(allowed=10, cost=10))
        drain(NOON)

    assert (UsageRow.objects.filter(period="minute").count(), total()) == (1, 30)


def test_limits_and_units_are_kept_apart(report_usage):
    """A token's totals, its limits and their units are rows of their own."""
    limit = {"policy": "pol_1", "limit": "minute"}
    report_usage("proxy-1-1", row(), row(**limit), row(**limit, unit="tokens"), row(token="tok_2"))

    drain(NOON)

    assert UsageRow.objects.filter(period="minute").count() == 4


def test_a_batch_that_is_sent_again_counts_once(report_usage, client_of_store):
    """An enforcer that does not know whether its batch arrived sends it again, unchanged."""
    for _ in range(2):
        report_usage("proxy-1-1", row())
    assert drain(NOON) == DrainResult(counted=1, repeated=1)

    report_usage("proxy-1-1", row())

    assert drain(NOON) == DrainResult(repeated=1)
    assert (total(), client_of_store.xlen(USAGE)) == (1, 0)


def test_more_than_one_read_is_drained(report_usage, client_of_store):
    """The stream is read in pieces, to its end."""
    for number in range(220):
        report_usage(f"proxy-1-{number}", row())

    assert drain(NOON) == DrainResult(counted=220)
    assert (total(), client_of_store.xlen(USAGE)) == (220, 0)


def test_as_many_drains_work_as_there_are_places(report_usage, client_of_store, settings):
    """The lock of a place keeps a second drain out of it."""
    settings.DRAINS = 1
    report_usage("proxy-1-1", row())

    with hold(client_of_store, "drain", ttl_ms=60_000):
        assert drain(NOON) == DrainResult()
    assert drain(NOON) == DrainResult(counted=1)


def test_a_malformed_entry_is_set_aside_and_blocks_no_other(report_usage, client_of_store):
    """It is kept with the reason for whoever looks into it; the others are counted."""
    report_usage("proxy-1-1", row())
    report_usage("proxy-1-2", row(allowed=-1))
    report_usage("proxy-1-3", row())

    assert drain(NOON) == DrainResult(counted=2, rejected=1)
    assert (total(), client_of_store.xlen(USAGE)) == (2, 0)
    [(_, kept)] = client_of_store.xrange(REJECTED)
    assert kept["id"] == "proxy-1-2"
    assert kept["reason"] == "rows[0].allowed: must be an integer from 0 to 1125899906842624, got -1."
    assert json.loads(kept["rows"]) == [row(allowed=-1)]


def test_entries_set_aside_are_bounded(client_of_store, store):
    """Whoever floods the stream with nonsense fills neither the store nor the set-aside."""
    with client_of_store.pipeline() as pipe:
        for number in range(1100):
            pipe.xadd(USAGE, {"nonsense": str(number) * 10_000})
        pipe.execute()

    rejected = 0
    while done := drain(NOON):  # a slow machine needs more than one run
        rejected += done.rejected
    assert rejected == 1100
    assert client_of_store.xlen(REJECTED) == 1000
    assert client_of_store.memory_usage(REJECTED, samples=0) < 20_000_000


@pytest.mark.parametrize("known", [2**63 - 1, 2**52, -(2**63)])
def test_a_sum_stays_where_others_can_be_added_to_it(report_usage, known):
    """Whatever forged rows have made of it, an honest batch with such a row is counted."""
    UsageRow.objects.create(
        period="minute", at=NOON, project_id="proj_1", token_id="tok_1", unit="requests", cost=known
    )
    report_usage("proxy-1-1", row(), row(token="tok_2"))

    assert drain(NOON) == DrainResult(counted=1)
    sums = dict(UsageRow.objects.filter(period="minute").values_list("token_id", "cost"))
    assert sums == {"tok_1": 2**52 if known > 0 else -(2**52), "tok_2": 1}


def test_the_sum_of_a_report_stays_there_too(report_usage):
    """Each of its numbers could be stored. Nor does what is recorded for previews end their folding."""
    report_usage("proxy-1-1", *[row(cost=2**50, allowed=2**50, denied=2**50)] * 2**13)
    report_usage("proxy-1-2", row(token="tok_2"))

    assert drain(NOON) == DrainResult(counted=2)
    minute = UsageRow.objects.get(period="minute", token_id="tok_1")
    assert (minute.cost, minute.allowed, minute.denied) == (2**52,) * 3
    RecordedMinute.objects.filter(token_id="tok_1").update(allowed=2**63 - 1, denied=2**63 - 1)
    assert recording.fold(NOON + timedelta(hours=1)) == 2
    assert dict(RecordedDay.objects.values_list("token_id", "requests")) == {"tok_1": 2**52, "tok_2": 1}


def test_a_day_that_cannot_be_folded_stops_no_other(report_usage, caplog):
    """It is left out of previews, and that is said."""
    RecordedDay.objects.create(project_id="proj_1", token_id="tok_1", day=NOON.date(), body=b"\x01no chunk")
    report_usage("proxy-1-1", row(), row(token="tok_2"))
    drain(NOON)

    recording.fold(NOON + timedelta(hours=1))

    assert dict(RecordedDay.objects.values_list("token_id", "requests")) == {"tok_1": 0, "tok_2": 1}
    assert "('proj_1', 'tok_1') on 2026-11-24 is left out of previews" in caplog.text


def test_what_is_honest_in_a_batch_counts(report_usage, client_of_store, caplog):
    """A row that no enforcer would send is set aside alone."""
    report_usage("proxy-1-1", row(), row(allowed=-1), [1, 2, 3], row(token="tok_2"))
    report_usage("proxy-1-2", row())

    assert drain(NOON) == DrainResult(counted=2, rejected=1)
    assert total() == 3
    [(_, kept)] = client_of_store.xrange(REJECTED)
    assert kept["reason"] == "rows[1].allowed: must be an integer from 0 to 1125899906842624, got -1."
    assert json.loads(kept["refused"]) == [["rows", row(allowed=-1)], ["rows", [1, 2, 3]]]
    assert "2 rows of the usage entry" in caplog.text


def test_what_the_database_refuses_is_found_row_by_row(report_usage, client_of_store, monkeypatch):
    """Should a value pass here that it cannot store, all others count once."""
    monkeypatch.setattr(batches, "MAX_COUNT", 2**70)
    report_usage("proxy-1-1", row(), row(token="tok_3"), row(token="tok_9", allowed=2**64), row(token="tok_2"))
    report_usage("proxy-1-2", row(token="tok_8", denied=2**64))

    assert drain(NOON) == DrainResult(counted=1, rejected=2)
    assert total() == 3
    assert [kept["id"] for _, kept in client_of_store.xrange(REJECTED)] == ["proxy-1-1", "proxy-1-2"]
    report_usage("proxy-1-1", row())
    assert drain(NOON) == DrainResult(repeated=1)


def test_tokens_learn_when_they_were_last_used(report_usage):
    """To the minute, and never backwards: batches arrive in any order."""
    token = TokenFactory()
    report_usage("proxy-1-1", row(token=token.pk), row(NOON_MINUTE - 5, token=token.pk))
    drain(NOON)
    report_usage("proxy-2-1", row(NOON_MINUTE - 3, token=token.pk))
    drain(NOON)

    token.refresh_from_db()
    assert token.last_used_at == NOON


def test_use_of_a_token_is_noted_though_a_drain_died_first(report_usage, monkeypatch):
    """Its batch is counted and not again. But nobody could know that the token was used, if it is never used again."""
    token = TokenFactory()
    report_usage("proxy-1-1", row(token=token.pk))
    with monkeypatch.context() as patch:
        patch.setattr(drainer, "note_use_of_tokens", lambda batches: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drain(NOON)

    assert drain(NOON) == DrainResult(repeated=1)
    token.refresh_from_db()
    assert token.last_used_at == NOON


def test_a_store_that_dies_raises_and_loses_nothing(report_usage, store):
    """The next run goes on."""
    report_usage("proxy-1-1", row())
    store.kill()

    with pytest.raises(STORE_ERRORS):
        drain(NOON)


def test_a_store_that_is_away_fails_no_task(store):
    """The next run is the retry."""
    store.kill()

    assert tasks.drain() == 0


DIES_BEFORE_DELETING = """
import os, signal
from datetime import datetime
from controlplane.traffic.usage import drain
drain.Claims.delete = lambda claims, entries: os.kill(os.getpid(), signal.SIGKILL)
drain.drain(datetime.fromisoformat("2026-11-24T12:00:00+00:00"))
"""


def test_a_drain_killed_between_commit_and_delete_counts_nothing_twice(report_usage, run_python, client_of_store):
    """SIGKILL after the commit leaves the entries in the stream; their ids settle it."""
    for number in range(20):
        report_usage(f"proxy-1-{number}", row())

    assert run_python(DIES_BEFORE_DELETING).wait() == -signal.SIGKILL
    assert (total(), client_of_store.xlen(USAGE)) == (20, 20)
    client_of_store.delete("sg:{lock}:drain")  # as its time to live would, later

    assert drain(NOON) == DrainResult(repeated=20)
    assert (total(), client_of_store.xlen(USAGE)) == (20, 0)


DIES_BEFORE_THE_COMMIT = """
import os, signal
from datetime import datetime
from controlplane.traffic.usage import drain
execute = drain.execute
drain.execute = lambda statements: (execute(statements), os.kill(os.getpid(), signal.SIGKILL))
drain.drain(datetime.fromisoformat("2026-11-24T12:00:00+00:00"))
"""


def test_a_drain_killed_before_its_commit_loses_nothing(report_usage, run_python, client_of_store):
    """What was not committed is still in the stream, and counted by the next drain."""
    for number in range(20):
        report_usage(f"proxy-1-{number}", row())

    assert run_python(DIES_BEFORE_THE_COMMIT).wait() == -signal.SIGKILL
    assert (total(), client_of_store.xlen(USAGE)) == (0, 20)
    client_of_store.delete("sg:{lock}:drain")  # as its time to live would, later

    assert drain(NOON) == DrainResult(counted=20)
    assert (total(), client_of_store.xlen(USAGE)) == (20, 0)


def test_a_killed_drain_does_not_hold_the_lock_for_ever(report_usage, run_python, client_of_store):
    """The next one waits 30 seconds at most, and with PostgreSQL another place is free meanwhile."""
    report_usage("proxy-1-1", row())
    run_python(DIES_BEFORE_DELETING).wait()

    assert 0 < client_of_store.pttl("sg:{lock}:drain") <= 30_000


DRAINS_WITHOUT_THE_LOCK = """
import os
from django.utils import timezone
from controlplane.traffic.usage import drain
drain.LOCK = f"failed-{os.getpid()}"
drain.ENTRIES_AT_ONCE = 7
drain.drain(timezone.now())
"""


def test_drains_at_once_count_once_though_the_lock_fails(report_usage, run_python, client_of_store):
    """The unique row settles what the lock should have kept apart: totals are exact in every period."""
    minute = int(drainer.time.time() // 60)
    for number in range(300):
        report_usage(f"proxy-1-{number}", row(minute), row(minute, token="tok_2"))

    drains = [run_python(DRAINS_WITHOUT_THE_LOCK) for _ in range(3)]

    assert [process.wait() for process in drains] == [0, 0, 0]
    assert [total(period) for period in ("minute", "hour", "day")] == [600, 600, 600]
    assert (UsageBatch.objects.count(), client_of_store.xlen(USAGE)) == (300, 0)


DRAINS_UNTIL_EMPTY = """
import os, signal, time
from django.conf import settings
from django.utils import timezone
from controlplane.core import store
from controlplane.traffic.usage import drain

settings.DRAINS, drain.ENTRIES_AT_ONCE = 2, 10
client, usage = store.connection(), store.keys().usage
execute = drain.execute

def die(*arguments):
    client.set("begun", 1)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)

if {dies} == "before the commit":
    drain.execute = lambda statements: (execute(statements), die())
elif {dies} == "before deleting":
    drain.Claims.delete = die
else:
    while not client.get("begun"):
        time.sleep(0.01)
while client.xlen(usage):
    drain.drain(timezone.now())
    time.sleep(0.01)
"""


@pytest.mark.proof
@pytest.mark.parametrize("dies", ["before the commit", "before deleting"])
def test_two_drains_of_which_one_is_killed_count_each_row_once(report_usage, run_python, client_of_store, dies):
    """The other one goes on beside it, and whoever comes into its place does the rest."""
    minute, batches = int(drainer.time.time() // 60), scale(60, 2_000)
    for number in range(batches):
        report_usage(f"proxy-1-{number}", row(minute), row(minute, token=f"tok_{number % 7}"))

    killed, other = (run_python(DRAINS_UNTIL_EMPTY.format(dies=repr(when))) for when in (dies, ""))
    assert killed.wait() == -signal.SIGKILL
    for place in ("drain", "drain-1"):
        client_of_store.delete(f"sg:{{lock}}:{place}")  # as its time to live would, later

    assert other.wait() == 0
    assert [total(period) for period in ("minute", "hour", "day")] == [2 * batches] * 3
    assert (UsageBatch.objects.count(), client_of_store.xlen(USAGE)) == (batches, 0)


def test_two_drains_with_one_batch_count_it_once(report_usage, client_of_store):
    """As an entry that is in the stream twice, or that an abandoned drain has, too."""
    report_usage("proxy-1-1", row())
    report_usage("proxy-1-1", row())
    first, second = (drainer.Claims(client_of_store, USAGE, place) for place in (0, 1))
    both = [(claims, claims.take(1)) for claims in (first, second)]
    done = DrainResult()

    for claims, entries in both:
        drainer._drain(drainer.Source(UsageStream(USAGE), claims), entries, NOON, done)

    assert (done, total(), client_of_store.xlen(USAGE)) == (DrainResult(counted=1, repeated=1), 1, 0)


on_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer, and no row locks")


@on_postgresql
def test_a_drain_waits_for_a_lock_only_so_long(report_usage, client_of_store, monkeypatch, caplog):
    """What it could not count stays in the stream, also for the drain in another place, and the next run counts it."""
    monkeypatch.setattr(transactions, "LOCK_WAIT_MS", 100)
    report_usage("proxy-1-1", row())
    drain(NOON)
    report_usage("proxy-1-2", row())

    with psycopg.connect(**connection.get_connection_params()) as holder:
        holder.execute("UPDATE usage_usagerow SET allowed = allowed")
        assert tasks.drain() == 0
        assert "locked for too long" in caplog.text
    assert (total(), client_of_store.xlen(USAGE)) == (1, 1)

    assert drain(NOON) == DrainResult(counted=1)
    assert (total(), client_of_store.xlen(USAGE)) == (2, 0)


@on_postgresql
def test_usage_goes_on_though_the_row_of_a_token_is_locked(report_usage, client_of_store, caplog):
    """As by a form that is suspended. The use of other tokens is noted, and its own once the row is free again."""
    locked, free = TokenFactory(), TokenFactory()
    report_usage("proxy-1-1", row(token=locked.pk), row(token=free.pk))

    with psycopg.connect(**connection.get_connection_params()) as holder:
        holder.execute("SELECT 1 FROM projects_token WHERE id = %s FOR UPDATE", [locked.pk])
        assert drain(NOON) == DrainResult(counted=1)
        assert f"their rows are locked: {locked.pk}" in caplog.text
        assert client_of_store.xlen(USAGE) == 0
    report_usage("proxy-1-2", row(token=locked.pk))
    drain(NOON)

    for token in (locked, free):
        token.refresh_from_db()
        assert token.last_used_at == NOON


IS_SUSPENDED_BEFORE_THE_COMMIT = """
import os, signal
from datetime import datetime
from controlplane.core import transactions
from controlplane.traffic.usage import drain
transactions.IDLE_MS = 300
execute = drain.execute
drain.execute = lambda statements: (execute(statements), os.kill(os.getpid(), signal.SIGSTOP))
assert not drain.drain(datetime.fromisoformat("2026-11-24T12:00:00+00:00"))
"""


@on_postgresql
def test_a_suspended_drain_holds_up_others_for_seconds_only(report_usage, run_python, client_of_store):
    """The server ends its transaction, so another one counts its entries, and once awake it counts nothing twice."""
    for number in range(20):
        report_usage(f"proxy-1-{number}", row())
    suspended = run_python(IS_SUSPENDED_BEFORE_THE_COMMIT)
    wait_until_stopped(suspended)
    client_of_store.delete("sg:{lock}:drain")  # as its time to live would, later

    assert drain(NOON) == DrainResult(counted=20)
    suspended.send_signal(signal.SIGCONT)

    assert suspended.wait() == 0
    assert (total(), client_of_store.xlen(USAGE)) == (20, 0)


IS_SUSPENDED_WHILE_IT_ERASES = """
import os, signal
from django.db.models import QuerySet
from controlplane.core import transactions
from controlplane.traffic.reports import erasing
transactions.IDLE_MS = 300
delete = QuerySet._raw_delete  # before the commit

def suspended(rows, using):
    QuerySet._raw_delete = delete
    deleted = delete(rows, using)
    os.kill(os.getpid(), signal.SIGSTOP)
    return deleted

QuerySet._raw_delete = suspended
assert erasing.erase("proj_1")[0]["usagerow"] == 3
"""


@on_postgresql
def test_a_suspended_erasure_holds_up_no_usage(report_usage, run_python):
    """As by Ctrl-Z. Once awake, it erases also the late usage that was counted meanwhile."""
    report_usage("proxy-1-1", row())
    drain(NOON)
    suspended = run_python(IS_SUSPENDED_WHILE_IT_ERASES)
    wait_until_stopped(suspended)
    report_usage("proxy-1-2", row(), row(project="proj_2"))

    assert drain(NOON) == DrainResult(counted=1)
    suspended.send_signal(signal.SIGCONT)

    assert suspended.wait() == 0
    assert set(UsageRow.objects.values_list("project_id", flat=True)) == {"proj_2"}


def test_another_drain_is_asked_for_if_there_is_much(report_usage):
    """Once for each run, and not for what one drain reads at once."""
    asked = []
    for number in range(420):
        report_usage(f"proxy-1-{number}", row())

    drain(NOON, more=lambda: asked.append("more"))
    report_usage("proxy-2-1", row())
    drain(NOON, more=lambda: asked.append("again"))

    assert (asked, total()) == (["more"], 421)


def test_a_drain_whose_time_ends_early_asks_for_the_next_one(report_usage, monkeypatch):
    """The schedule would leave a process idle for up to two seconds."""
    asked = []
    monkeypatch.setattr(drainer, "MOST_SECONDS", 0)
    report_usage("proxy-1-1", row())

    assert drain(NOON, more=lambda: asked.append("more")) == DrainResult()
    assert asked == ["more"]


def test_an_entry_that_is_older_than_the_known_ids_is_refused(client_of_store):
    """A store that was restored from a copy of weeks ago brings back what was counted and forgotten."""
    at = NOON - timedelta(days=7, seconds=1)
    fields = {"id": "proxy-1-1", "instance": "proxy-1", "rows": json.dumps([row()])}
    client_of_store.xadd(USAGE, fields, id=f"{int(at.timestamp() * 1000)}-0")
    client_of_store.xadd(USAGE, {**fields, "id": "proxy-1-2"}, id=f"{int(at.timestamp() * 1000) + 2000}-0")

    assert drain(NOON) == DrainResult(counted=1, rejected=1)
    [(_, kept)] = client_of_store.xrange(REJECTED)
    assert (kept["id"], kept["reason"]) == ("proxy-1-1", "entry: must be at most 7 days old.")


@pytest.mark.parametrize("wrong_by", [timedelta(days=-1), timedelta(hours=-2), timedelta(days=8)])
def test_a_worker_with_a_wrong_clock_leaves_usage_in_the_store(
    report_usage, client_of_store, monkeypatch, caplog, wrong_by
):
    """It would refuse all of it, as from the future or too old. The next one counts it."""
    now = timezone.now()
    report_usage("proxy-1-1", row(int(now.timestamp() // 60)))
    monkeypatch.setattr(timezone, "now", lambda: now + wrong_by)

    assert tasks.drain() == 0
    assert "the clock of this worker, or that of the store, is wrong" in caplog.text
    assert (client_of_store.xlen(USAGE), client_of_store.exists(REJECTED)) == (1, 0)

    monkeypatch.setattr(timezone, "now", lambda: now + timedelta(days=1))
    assert tasks.drain() == 1


def test_usage_late_by_days_is_counted_where_it_is_still_kept(report_usage):
    """Minutes are kept for two days, so an older one is counted in its hour and day alone."""
    report_usage("proxy-1-1", row(NOON_MINUTE - 3 * 1440))

    drain(NOON)

    rows = UsageRow.objects.values_list("period", "at")
    assert set(rows) == {("hour", NOON - timedelta(days=3)), ("day", NOON - timedelta(days=3, hours=12))}
