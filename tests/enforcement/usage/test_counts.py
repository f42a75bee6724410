"""What was decided: counted exactly, for each token, limit and minute, and delivered in batches that keep their ids."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import pytest

from enforcement.model.documents import parse_token
from enforcement.model.strict_json import dumps
from enforcement.state.token_cache import TokenEntry
from enforcement.usage import counts
from enforcement.usage.counts import TokenUsage, UsageLog
from tests.enforcement.published import token

REQUESTS = ("pol_1", "per-minute", "requests")
TOKENS = ("pol_1", "tokens-per-day", "tokens")
MINUTE = 29_000_000


@pytest.fixture
def log() -> UsageLog:
    return UsageLog("proxy-1")


@pytest.fixture
def counted(log: UsageLog) -> TokenUsage:
    return log.of(TokenEntry(parse_token(dumps(token()))), [REQUESTS, TOKENS])


def rows(log: UsageLog) -> list[list[Any]]:
    """Return the rows of all batches, without project and token, and take them for delivered."""
    found = []
    for batch in log.drain():
        found += [[row[0], *row[3:]] for row in json.loads(batch.rows)]
        log.delivered(batch)
    return sorted(found)


def test_passed_request_is_counted_for_the_token_and_each_limit(log: UsageLog, counted: TokenUsage) -> None:
    """The total counts a decision once, at its cost in requests; each limit counts it with what it was charged."""
    counted.passed(MINUTE, 1, [(0, 1), (1, 812)])
    counted.passed(MINUTE, 1, [(0, 1), (1, 812)])

    assert rows(log) == [
        [MINUTE, "", "", "requests", 2, 0, 0, 2],
        [MINUTE, "pol_1", "per-minute", "requests", 2, 0, 0, 2],
        [MINUTE, "pol_1", "tokens-per-day", "tokens", 2, 0, 0, 1624],
    ]


def test_denied_request_is_counted_for_the_limit_that_denied(log: UsageLog, counted: TokenUsage) -> None:
    """A limit that would have admitted a denied request counts neither; nothing was charged."""
    counted.decided(MINUTE, False, 0, [(0, False, False, 0), (1, True, False, 0)])

    assert rows(log) == [
        [MINUTE, "", "", "requests", 0, 1, 0, 0],
        [MINUTE, "pol_1", "per-minute", "requests", 0, 1, 0, 0],
    ]


def test_shadow_limit_counts_what_it_would_have_denied(log: UsageLog, counted: TokenUsage) -> None:
    """A shadow never denies: the request passed, and the shadow was not charged."""
    counted.decided(MINUTE, True, 1, [(0, True, False, 1), (1, False, True, 0)])

    assert rows(log) == [
        [MINUTE, "", "", "requests", 1, 0, 1, 1],
        [MINUTE, "pol_1", "per-minute", "requests", 1, 0, 0, 1],
        [MINUTE, "pol_1", "tokens-per-day", "tokens", 1, 0, 1, 0],
    ]
    assert log.would_deny == 1


def test_request_that_two_shadows_would_deny_is_one_request(log: UsageLog, counted: TokenUsage) -> None:
    """The sum over limits counts twice what enforcing both would deny once."""
    counted.decided(MINUTE, True, 1, [(0, False, True, 0), (1, False, True, 0)])

    assert [(limit, would_deny) for _, _, limit, _, _, _, would_deny, _ in rows(log)] == [
        ("", 1),
        ("per-minute", 1),
        ("tokens-per-day", 1),
    ]


def test_denied_request_would_not_be_denied_once_more(log: UsageLog, counted: TokenUsage) -> None:
    """Enforcing the shadow changes nothing about it, so only the shadow's own row counts it."""
    states = [(0, False, False, 0), (1, False, True, 0)]
    counted.decided(MINUTE, False, 0, states)
    counted.denied_again(MINUTE, states)

    assert rows(log) == [
        [MINUTE, "", "", "requests", 0, 2, 0, 0],
        [MINUTE, "pol_1", "per-minute", "requests", 0, 2, 0, 0],
        [MINUTE, "pol_1", "tokens-per-day", "tokens", 0, 0, 2, 0],
    ]


def test_limit_that_a_request_does_not_fall_under_is_not_counted(log: UsageLog, counted: TokenUsage) -> None:
    """Only matching limits are named by a decision."""
    counted.passed(MINUTE, 1, [(1, 5)])

    assert [row[2] for row in rows(log)] == ["", "tokens-per-day"]


def test_changing_costs_and_minutes_add_up(log: UsageLog, counted: TokenUsage) -> None:
    """Every decision counts in its own minute, whatever the one before it cost."""
    for minute, cost in [(MINUTE, 3), (MINUTE, 4), (MINUTE + 1, 4), (MINUTE, 5)]:
        counted.passed(minute, 1, [(1, cost)])

    assert [row for row in rows(log) if row[1]] == [
        [MINUTE, "pol_1", "tokens-per-day", "tokens", 3, 0, 0, 12],
        [MINUTE + 1, "pol_1", "tokens-per-day", "tokens", 1, 0, 0, 4],
    ]


def test_settlement_after_the_batch_left_corrects_its_minute(log: UsageLog, counted: TokenUsage) -> None:
    """What was given back is a row of its own, with a negative cost and no decision."""
    counted.passed(MINUTE, 1, [(1, 4000)])
    rows(log)

    counted.amend(MINUTE, 1, -3287)
    counted.amend(MINUTE, -1, -1)

    assert rows(log) == [
        [MINUTE, "", "", "requests", 0, 0, 0, -1],
        [MINUTE, "pol_1", "tokens-per-day", "tokens", 0, 0, 0, -3287],
    ]


def test_counting_goes_on_after_a_drain(log: UsageLog, counted: TokenUsage) -> None:
    """The same request in the same minute is counted anew, and nothing twice."""
    counted.passed(MINUTE, 1, [(0, 1)])
    rows(log)
    counted.passed(MINUTE, 1, [(0, 1)])

    assert rows(log)[0] == [MINUTE, "", "", "requests", 1, 0, 0, 1]
    assert rows(log) == []


def test_batch_is_sent_again_unchanged_until_delivered(log: UsageLog, counted: TokenUsage) -> None:
    """A receiver that has seen the id may pass over the copy: it holds the same rows, later counts are elsewhere."""
    counted.passed(MINUTE, 1, [(0, 1)])
    [first] = log.drain()
    counted.passed(MINUTE, 1, [(0, 1)])

    again, second = log.drain()

    assert again == first
    assert first.id.startswith("proxy-1-")
    assert second.id != first.id
    log.delivered(first)
    assert log.drain() == [second]


def test_ids_are_not_repeated_by_a_process_of_the_same_name(counted: TokenUsage, log: UsageLog) -> None:
    """A proxy that is restarted under a fixed name counts anew; its batches must not look like the old ones."""
    other = UsageLog("proxy-1")
    for each in (log, other):
        each.of(TokenEntry(parse_token(dumps(token()))), [REQUESTS]).passed(MINUTE, 1, [(0, 1)])

    assert log.drain()[0].id != other.drain()[0].id


def test_batch_holds_a_thousand_rows_at_most(log: UsageLog, counted: TokenUsage) -> None:
    """One entry of the stream has a bounded size."""
    for minute in range(1_500):
        counted.passed(minute, 1, [(0, 1)])

    assert [len(json.loads(batch.rows)) for batch in log.drain()] == [1_000, 1_000, 1_000]


def test_counts_wait_and_merge_while_nobody_takes_the_batches(log: UsageLog, counted: TokenUsage) -> None:
    """During an outage eight batches wait; later counts of one minute become one row, and none is lost."""
    for _ in range(100):
        counted.passed(MINUTE, 1, [(0, 1)])
        log.drain()

    assert len(log.drain()) == 8
    for batch in log.drain():
        log.delivered(batch)
    assert rows(log)[0] == [MINUTE, "", "", "requests", 92, 0, 0, 92]


def test_what_finds_no_room_is_counted_as_dropped(log: UsageLog, counted: TokenUsage, monkeypatch) -> None:
    """Memory is bounded, and a loss is known by its number of decisions."""
    monkeypatch.setattr(counts, "MAX_UNDELIVERED", 0)
    monkeypatch.setattr(counts, "MAX_WAITING_ROWS", 2)
    for minute in (1, 2, 2):
        counted.passed(minute, 1, [(0, 1)])

    log.drain()

    assert log.dropped == 2
    assert log.allowed == 3


def test_new_limits_of_a_token_are_counted_under_their_names(log: UsageLog) -> None:
    """A plan that was compiled anew keeps its counts if its limits are the same, and gets others if not."""
    entry = TokenEntry(parse_token(dumps(token())))
    first = log.of(entry, [REQUESTS])

    assert log.of(entry, [REQUESTS]) is first
    other = log.of(entry, [TOKENS])
    first.passed(MINUTE, 1, [(0, 1)])
    other.passed(MINUTE, 1, [(0, 9)])
    assert rows(log) == [
        [MINUTE, "", "", "requests", 2, 0, 0, 2],
        [MINUTE, "pol_1", "per-minute", "requests", 1, 0, 0, 1],
        [MINUTE, "pol_1", "tokens-per-day", "tokens", 1, 0, 0, 9],
    ]


def test_counts_are_exact_over_threads_and_drains(log: UsageLog, counted: TokenUsage) -> None:
    """Threads that switch at every moment, and a drain among them, neither lose a decision nor count one twice."""

    def decide() -> None:
        for number in range(5_000):
            counted.passed(MINUTE + number % 2, 1, [(0, number % 3)])
            counted.decided(MINUTE, False, 0, [(0, False, False, 0)])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=decide) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        found = []
        while any(thread.is_alive() for thread in threads):
            found += rows(log)
    finally:
        sys.setswitchinterval(interval)
    found += rows(log)

    totals = [row for row in found if row[1] == ""]
    assert sum(row[4] for row in totals) == 20_000
    assert sum(row[5] for row in totals) == 20_000
    assert sum(row[7] for row in found if row[1]) == 4 * sum(number % 3 for number in range(5_000))


def test_forked_child_reports_only_its_own(log: UsageLog, counted: TokenUsage) -> None:
    """What was counted before the fork is the parent's to report, even if another thread was counting just then."""
    counted.passed(MINUTE, 1, [(0, 1)])
    log.lock.acquire()
    reading, writing = os.pipe()
    if os.fork() == 0:
        log.after_fork("child")
        counted.passed(MINUTE, 1, [(0, 1)])
        [batch] = log.drain()
        os.write(writing, f"{batch.instance} {json.loads(batch.rows)[0][6]}".encode())
        os._exit(0)
    log.lock.release()

    assert os.read(reading, 100) == b"child 1"
    assert rows(log)[0] == [MINUTE, "", "", "requests", 1, 0, 0, 1]
    os.wait()
