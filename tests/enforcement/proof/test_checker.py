"""The checker of a proof: a claim that holds, and for each claim one that is broken."""

import pytest

from enforcement import Limit
from enforcement.proof.checker import judge
from enforcement.proof.evidence import CounterReading, Evidence, Terms
from enforcement.proof.history import Ledger, LedgerCounter, Record

SECOND = 1_000_000
START = 1_767_225_600 * SECOND
HOUR = Limit(name="rate", quota=10, window_seconds=3_600)
COUNTER = LedgerCounter("sg:{k}:f", HOUR)


class Book:
    """Decisions of one process, made up."""

    def __init__(self, instance="a", counter=COUNTER):
        self.ledger = Ledger(None, instance, 25.0)
        self.counter = counter

    def write(
        self, source="store", count=1, *, at=0.0, took_ms=1.0, reason="ok", cause="", cost=1, revision=0, ident=""
    ):
        for _ in range(count):
            number = len(self.ledger.records)
            started = START + int(at * SECOND) + number
            self.ledger.records.append(
                Record(
                    instance=self.ledger.instance,
                    id=ident or f"{self.ledger.instance}-{number}",
                    started_at_us=started,
                    ended_at_us=started + int(took_ms * 1_000),
                    decided_at_us=started,
                    allowed=reason == "ok",
                    reason=reason,
                    source=source,
                    cause=cause,
                    ambiguous=cause in ("timeout", "connection"),
                    revision=revision,
                    counters=(self.counter,),
                    costs=(cost,),
                    denied_by=() if reason == "ok" else (self.counter.limit.name,),
                )
            )
        return self


def broken(*books, readings=(), **terms):
    """Return the claims that do not hold, with their figures."""
    claims = judge(Evidence([book.ledger for book in books], Terms(**terms)), readings)
    return {claim.what: claim.found for claim in claims if claim.held is False}


def test_a_quota_kept_is_told_from_one_exceeded():
    """Ten of ten hold; the eleventh is named with its figure."""
    assert broken(Book().write(count=10)) == {}
    assert broken(Book().write(count=11)) == {"rate: admitted in a window with the store": "11 (worst of 1)"}


def test_windows_are_counted_apart():
    """Ten before the hour and ten behind it are within the quota; twenty in between are not."""
    assert broken(Book().write(count=10, at=3_590).write(count=10, at=3_610)) == {}
    log = LedgerCounter("sg:{k}:l", Limit(name="rate", algorithm="sliding_log", quota=10, window_seconds=3_600))
    across = Book(counter=log).write(count=10, at=3_590).write(count=10, at=3_610)
    assert broken(across) == {"rate: admitted in a window with the store": "20 (worst of 1)"}


def test_a_bucket_may_be_emptied_and_refilled_no_faster():
    """Two in the beginning and one each second are what it gives; one more is not."""
    bucket = Limit(name="rate", algorithm="token_bucket", quota=1, window_seconds=1, burst=2)
    book = Book(counter=LedgerCounter("sg:{k}:b", bucket)).write(count=2)
    for second in range(1, 4):
        book.write(at=second)
    assert broken(book) == {}
    assert broken(book.write(at=3)) == {"rate: admitted in a window with the store": "3 (worst of 1)"}


def test_an_outage_may_cost_its_bound_and_no_more():
    """Cut by an outage a window may hold twice the quota and one for each instance: 2 x 10 + 2."""
    a, b = Book("a"), Book("b")
    a.write(count=10)
    for book in (a, b):
        book.write("fallback", 5)
    assert broken(a, b) == {}
    b.write("fallback", 1)
    assert broken(a, b) == {"rate: admitted by one process alone": "6 (worst of 2)"}
    a.write("fallback", 2)
    assert broken(a, b)["rate: admitted in a window that an outage cuts"] == "23 (worst of 1)"


def test_a_window_within_an_outage_may_cost_its_bound_and_no_more():
    """Without the store a window holds the quota and one for each instance: 10 + 2, whoever admits it."""
    books = [Book(name).write("fallback", 6) for name in ("a", "b")]
    found = broken(*books)
    assert found == {"rate: admitted by one process alone": "6 (worst of 2)"}
    books[0].write("fallback")
    assert broken(*books)["rate: admitted in a window without the store"] == "13 (worst of 1)"


def test_a_limit_that_denies_without_the_store_admits_nothing_there():
    """``deny`` has no share."""
    counter = LedgerCounter("sg:{k}:f", Limit(name="rate", quota=10, window_seconds=3_600, on_store_failure="deny"))
    assert "rate: admitted by one process alone" in broken(Book(counter=counter).write("fallback"))


def test_a_failover_may_cost_one_quota():
    """Beyond it the sum is broken, however it is spread."""
    hours = Book().write(count=15).write(count=14, at=3_600)
    assert broken(hours, failovers=1) == {}
    hours.write(count=2, at=3_600)
    assert broken(hours, failovers=1)["rate: admitted beyond that, in all"] == "11"


@pytest.mark.parametrize(
    ("spoil", "claim"),
    [
        (lambda book: book.write(ident="a-0"), "duplicate request ids"),
        (lambda book: book.write(took_ms=31), "a decision takes"),
        (lambda book: book.write("fallback", 6, cause="timeout"), "decisions of one outage that asked in vain"),
        (lambda book: book.write("fallback", 10, took_ms=2), "a decision while the store is not asked"),
        (lambda book: book.write(revision=4).write(revision=3), "older revisions obeyed after newer ones"),
    ],
)
def test_each_claim_can_be_broken(spoil, claim):
    """A book that holds without the one thing does not hold with it."""
    assert broken(Book().write()) == {}
    assert claim in broken(spoil(Book().write()))


def test_saturation_means_that_nothing_was_left():
    """Whoever was denied while one was left was denied wrongly."""
    denied = {"reason": "limited", "count": 1}
    assert broken(Book().write(count=10).write(**denied), saturated=True) == {}
    assert broken(Book().write(count=9).write(**denied), saturated=True) == {
        "rate: permits left unused where requests were denied": "1 (worst of 1 windows)"
    }
    # Two do not fit into one.
    assert broken(Book().write(count=9).write(**denied, cost=2), saturated=True) == {}
    # What was carried is not known, so only the quota of the window must have been used.
    rolling = LedgerCounter("sg:{k}:r", Limit(name="rate", quota=10, calendar="hour", rollover=5))
    assert broken(Book(counter=rolling).write(count=10).write(**denied), saturated=True) == {}
    assert len(broken(Book(counter=rolling).write(count=9).write(**denied), saturated=True)) == 1


def test_the_return_to_the_store_is_timed():
    """The last decision without it counts; a process that never returns is named."""
    back_at = START + 10 * SECOND
    book = Book().write("fallback", at=9).write("fallback", at=12).write(at=16)
    assert broken(book, back_at_us=back_at) == {}
    assert "from the store's return to its use" in broken(book, back_at_us=back_at, return_seconds=1.0)
    assert "from the store's return to its use" in broken(book.write("fallback", at=17), back_at_us=back_at)
    assert broken(Book().write(at=11), back_at_us=back_at) == {
        "from the store's return to its use": "no process was ever without the store"
    }


@pytest.mark.parametrize(("cause", "least"), [("timeout", 2), ("connection", 3)])
@pytest.mark.parametrize(("more", "held"), [(-1, False), (0, True), (1, True), (2, False)])
def test_what_was_charged_must_have_been_admitted_or_asked_for(cause, least, more, held):
    """Three were admitted. A call that was late is the store's; one that was cut off, the process pays too."""
    book, used = Book().write(count=2).write("fallback", cause=cause), least + more
    found = broken(book, readings=[CounterReading(COUNTER, START + SECOND, used)])
    assert (found == {}) is held
