"""When requests came within their minute: noted by the time of the collection, and never on the road of a request."""

from __future__ import annotations

import json

import pytest

from enforcement.model.documents import parse_token
from enforcement.model.strict_json import dumps
from enforcement.state.token_cache import TokenEntry
from enforcement.usage.batch import OutgoingBatch
from enforcement.usage.counts import TokenUsage, UsageLog
from tests.enforcement.published import token

MINUTE = 29_000_000
SECOND = 1_000_000
BEGINS = MINUTE * 60 * SECOND


class Clock:
    def __init__(self) -> None:
        self.us = BEGINS

    def __call__(self) -> int:
        return self.us


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> UsageLog:
    return UsageLog("proxy-1", now_us=clock)


@pytest.fixture
def counted(log: UsageLog) -> TokenUsage:
    return log.of(TokenEntry(parse_token(dumps(token()))), [("pol_1", "per-minute", "requests")])


def collect(log: UsageLog, clock: Clock, second: float) -> list[OutgoingBatch]:
    clock.us = BEGINS + int(second * SECOND)
    return log.drain()


def test_each_collection_notes_its_second_and_its_ten_seconds(log: UsageLog, counted: TokenUsage, clock: Clock) -> None:
    """The bit is that of the middle of what was collected; the index is that of the row without a limit."""
    counted.passed(MINUTE, 1, [(0, 1)], 3)
    counted.decided(MINUTE, False, 0, [(0, False, False, 0)])

    [batch] = collect(log, clock, 12.0)

    assert json.loads(batch.spread) == [[1, 1 << 11, 0, 4, 0, 0, 0, 0]]
    assert json.loads(batch.rows)[1][5:] == ["requests", 3, 1, 0, 3]


def test_collections_add_up_until_the_row_is_taken(log: UsageLog, counted: TokenUsage, clock: Clock) -> None:
    """While the store is away rows wait, and so do their spreads."""
    for second in range(1, 9):  # as many batches as may be undelivered
        counted.passed(MINUTE - 1, 1, [(0, 1)])
        collect(log, clock, second - 60)
    for second in (11.0, 12.0):
        counted.passed(MINUTE, 1, [(0, 1)])
        collect(log, clock, second)
    for batch in collect(log, clock, 13.0):
        log.delivered(batch)

    [last] = collect(log, clock, 14.0)

    assert json.loads(last.spread) == [[1, 1 << 11, 0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(("second", "bit"), [(60.9, 59), (0.2, 0)])
def test_a_collection_just_beside_the_minute_counts_for_its_edge(
    log: UsageLog, counted: TokenUsage, clock: Clock, second: float, bit: int
) -> None:
    """The last requests of a minute are collected in the next one."""
    counted.passed(MINUTE, 1, [(0, 1)])

    [batch] = collect(log, clock, second)

    assert json.loads(batch.spread)[0][1] == 1 << bit


@pytest.mark.parametrize("second", [70.0, -10.0])
def test_requests_of_another_minute_are_not_placed(
    log: UsageLog, counted: TokenUsage, clock: Clock, second: float
) -> None:
    """A settlement or a fallback may count late: then only the minute is known."""
    counted.passed(MINUTE, 1, [(0, 1)])

    [batch] = collect(log, clock, second)

    assert batch.spread == ""


def test_what_was_collected_late_is_not_placed(log: UsageLog, counted: TokenUsage, clock: Clock) -> None:
    """After a pause of the process its requests may have come at any second of the pause."""
    collect(log, clock, 10.0)
    counted.passed(MINUTE, 1, [(0, 1)])

    [batch] = collect(log, clock, 14.0)

    assert batch.spread == ""


def test_a_batch_without_a_spread_has_no_such_field() -> None:
    """Control planes before this field read the others as ever."""
    log = UsageLog("proxy-1")
    of_log = log.of(TokenEntry(parse_token(dumps(token()))), [])
    of_log.passed(MINUTE, 1, [])

    [batch] = log.drain()

    assert batch.fields().keys() == {"id", "instance", "rows"}
