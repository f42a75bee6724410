"""The small classes that the fallback is composed of, without a store."""

from dataclasses import replace

from enforcement.failover.journal import MAX_LOOKED_AT, Journal, JournalCharge
from enforcement.failover.partition_values import LocalValues
from enforcement.failover.slots import UnreportedSlots
from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.model.partitions import PartitionIndex
from enforcement.plan.binding import bind_in_code

FIXED = Limit(name="rate", quota=100, window_seconds=3_600)
SLOTS = Limit(name="slots", algorithm="concurrency", quota=2, window_seconds=60)


def test_the_journal_looks_at_some_of_what_waits_for_a_server_that_is_away():
    """Decisions wait for it meanwhile; the next call looks at the rest, so that what can be sent is found."""
    journal, looked = Journal(), []
    for number in range(3 * MAX_LOOKED_AT):
        of_key = bind_in_code([FIXED], f"k{number}", Keys())[0]
        journal.add(JournalCharge(of_key.key, of_key, 0, 1))

    def is_ready(charge):
        looked.append(charge.key)
        return charge.key == of_key.key

    calls = [(journal.batches(is_ready, 10), len(looked)) for _ in range(3)]

    assert [number for _, number in calls] == [MAX_LOOKED_AT, 2 * MAX_LOOKED_AT, 3 * MAX_LOOKED_AT + 1]
    assert [charge.key for batches, _ in calls for batch in batches for charge in batch.charges] == [of_key.key]
    assert len(journal.batches(lambda charge: True)) == 3 * MAX_LOOKED_AT


def bound(limit=SLOTS):
    """Return the limit bound to a counter."""
    return bind_in_code([limit], "k", Keys())[0]


def charge():
    """Return two slots to report."""
    return JournalCharge(bound().key, bound(), 0, 2)


def test_slots_that_are_held_are_reported_once():
    """The store takes them under the id of the reservation, and then they are no longer unreported."""
    slots = UnreportedSlots(lambda key: {"id": 2})
    slots.add("id", charge())
    [batch] = slots.batches(lambda charge: True)

    freeing = list(slots.reported(batch))

    assert (batch.ident, batch.reports_slots, freeing, bool(slots)) == ("id", True, [], False)


def test_slots_freed_during_their_report_are_freed_in_the_store():
    """The store has taken slots by then that nobody holds."""
    slots = UnreportedSlots(lambda key: {"id": 2})
    slots.add("id", charge())
    [batch] = slots.batches(lambda charge: True)
    assert slots.free("id", batch.charges[0].key)

    [freeing] = slots.reported(batch)

    assert (freeing.ident, freeing.charges[0].permits, freeing.reports_slots) == ("id", -2, False)


def test_slots_whose_report_got_no_reply_are_freed_in_the_store():
    """It may have taken them. Those that are still held are reported again, and freed there when they are left."""
    slots = UnreportedSlots(lambda key: {"id": 2})
    slots.add("id", charge())
    slots.add("left", charge())
    held, left = slots.batches(lambda charge: True)
    assert slots.free("left", bound().key)

    freed = [batch for report in (held, left) for batch in slots.perhaps_reported(report)]

    assert [(batch.ident, batch.charges[0].permits) for batch in freed] == [("left", -2)]
    assert [batch.ident for batch in slots.batches(lambda charge: True)] == ["id"]
    assert not slots.free("id", bound().key)


def test_slots_of_the_store_are_kept_only_while_they_are_held():
    """A renewal that comes after the slots were freed must not report them."""
    held = {"id": 2}
    slots = UnreportedSlots(lambda key: held)
    slots.renew("id", bound(), 2)
    assert slots

    slots.free("id", bound().key)
    held.clear()
    slots.renew("id", bound(), 2)

    assert not slots


def test_values_beyond_the_cap_overflow():
    """A value that is known needs no room, and there is room again after an outage."""
    values, index = LocalValues(), PartitionIndex("index", "overflowed", "overflow", cap=2, life_us=1_000_000)

    def register(value):
        return values.register(replace(bound(), partitions=index, value=value))

    assert [register(value) for value in ("a", "b", "c", "a")] == [0, 0, 1, 0]
    values.clear()
    assert register("c") == 0
