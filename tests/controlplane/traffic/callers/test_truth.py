"""A preview of recorded hours, held against the same requests with the candidate enforced for real."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.releases.preview.previews import Preview
from controlplane.traffic.callers import recording
from controlplane.traffic.callers.kinds import TOKEN
from controlplane.traffic.callers.models import RecordedMinute
from controlplane.traffic.stream.batches import StreamBatch
from enforcement import Limit, Limiter
from enforcement.model.documents import parse_token
from enforcement.model.strict_json import dumps
from enforcement.state.token_cache import TokenEntry
from enforcement.usage.counts import UsageLog
from tests.controlplane.traffic.callers.traffic import BEGINS, SECOND, callers, preview
from tests.enforcement.published import token as document
from tests.factories import PolicyFactory, TokenFactory
from tests.scale import scale

HOURS, TOKENS = scale((3, 6), (24, 10))
SLIDING = Limit(name="candidate", quota=8, window_seconds=60, algorithm="sliding_window")
LIMITS = scale(
    [SLIDING],
    [
        SLIDING,
        Limit(name="candidate", quota=8, window_seconds=60),
        Limit(name="candidate", quota=700, window_seconds=3600, algorithm="sliding_window"),
        Limit(name="candidate", quota=30, window_seconds=90, algorithm="sliding_log"),
        Limit(name="candidate", quota=20, window_seconds=60, algorithm="token_bucket", burst=30),
        Limit(name="candidate", quota=9000, calendar="day", time_zone="Asia/Kolkata"),
    ],
)
STARTS = datetime.fromtimestamp(BEGINS, UTC)
ENDS = STARTS + timedelta(hours=HOURS)


def record(instants: dict[str, list[int]]) -> None:
    """Count the requests as an enforcer does, which delivers once a second, and save them as the drain does."""
    clock = [BEGINS * SECOND]
    log = UsageLog("proxy-1", now_us=lambda: clock[0])
    entries = {pk: TokenEntry(parse_token(dumps(document(id=pk)))) for pk in instants}
    by_second = Counter((at // SECOND, pk) for pk, of_token in instants.items() for at in of_token)
    for second in range(BEGINS, BEGINS + HOURS * 3600):
        for pk, entry in entries.items():
            if requests := by_second[second, pk]:
                log.of(entry, []).passed(second // 60, 1, [], requests)
        clock[0] = (second + 1) * SECOND
        for batch in log.drain():
            recording.add(StreamBatch.parse("1-0", batch.fields(), ENDS).rows, ENDS)
            log.delivered(batch)


def enforce(url: str, limit: Limit, instants: dict[str, list[int]]) -> Counter[tuple[str, int]]:
    """Return by token and hour how many requests the store denies, with a clock that stands at each request."""
    clock, denied = [0], Counter()
    with Limiter(url, clock=lambda: clock[0]) as limiter:
        for at, pk in sorted((at, pk) for pk, of_token in instants.items() for at in of_token):
            clock[0] = at
            if not limiter.hit(limit, pk):
                denied[pk, (at // SECOND - BEGINS) // 3600] += 1
    return denied


@pytest.mark.proof
@pytest.mark.django_db(transaction=True)
def test_what_is_enforced_lies_within_what_the_page_states(store):
    """By token and hour the truth is in the range, and the likely total is within 2 %."""
    policy = PolicyFactory()
    tokens = [TokenFactory(policy=policy).pk for _ in range(TOKENS)]
    instants = dict(zip(tokens, callers(TOKENS, HOURS, seed=11), strict=True))
    record(instants)
    recording.fold(ENDS + recording.SETTLED)

    for number, limit in enumerate(LIMITS):
        true = enforce(store.url, replace(limit, name=f"candidate-{number}"), instants)

        likely = 0
        for hour in range(HOURS):
            span = (STARTS + timedelta(hours=hour), STARTS + timedelta(hours=hour + 1))
            found = preview(policy, [limit], ENDS, span)
            check(found, {pk: true[pk, hour] for pk in tokens})
            likely += found.denied.likely
        assert not RecordedMinute.objects.exists()
        assert abs(likely - true.total()) <= 0.02 * true.total()
        assert true.total() > 100


def check(found: Preview, true: dict[str, int]) -> None:
    """Assert that the denials of each token lie within what the preview of an hour states."""
    stated = {one.caller: one.denied for one in found.affected}
    for pk, denied in true.items():
        if (TOKEN, pk) in stated:
            assert stated[TOKEN, pk].low <= denied <= stated[TOKEN, pk].high
        else:
            assert denied <= found.denied.high - found.denied.likely
