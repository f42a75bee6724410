import json

import pytest

from controlplane.traffic.stream.batches import WIDTHS, InvalidBatch, Row, StreamBatch
from controlplane.traffic.usage.models import DeniedRequest, EstimateSample, MeteredRow, UsageBatch, UsageRow
from enforcement.metering.amounts import MAX_COUNT, Usage
from enforcement.metering.opening import open_request
from enforcement.metering.prices import NO_PRICES
from enforcement.metering.request import read_request
from enforcement.metering.settlement import Settlement
from enforcement.metering.tally import MAX_MODELS
from enforcement.model.limits import Limit
from enforcement.model.metered import Metering
from enforcement.usage.counts import MAX_METERED_ROWS_PER_BATCH, MAX_SAMPLES_PER_BATCH, UsageLog
from tests.controlplane.traffic.usage.conftest import NOON, NOON_MINUTE, row


def parse(rows: object, **fields: str) -> StreamBatch:
    text = rows if isinstance(rows, str) else json.dumps(rows)
    return StreamBatch.parse("1-0", {"id": "proxy-1-7", "instance": "proxy-1", "rows": text, **fields}, NOON)


def test_a_batch_is_read():
    """Its id makes it unique; each row has its minute, names and counts."""
    batch = parse([row(policy="pol_1", limit="minute", unit="tokens", allowed=3, denied=2, would_deny=1, cost=812)])

    names = ("proj_1", "tok_1", "pol_1", "minute", "tokens")
    assert batch == StreamBatch("1-0", "proxy-1-7", "proxy-1", (Row(NOON, names, (3, 2, 1, 812)),))


def test_a_cost_may_be_given_back():
    """A settlement below the estimate takes back what an earlier batch counted."""
    assert parse([row(allowed=0, cost=-3287)]).rows[0].counts == (0, 0, 0, -3287)


def test_a_batch_without_rows_is_one():
    """An enforcer that has nothing to report says nothing wrong."""
    assert parse([]).rows == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"minute": NOON_MINUTE + 61}, "rows[0].minute: must be a minute since the epoch"),
        ({"minute": NOON_MINUTE - 731 * 1440}, "rows[0].minute: must be a minute since the epoch"),
        ({"minute": True}, "rows[0].minute: must be a minute since the epoch"),
        ({"minute": "29925360"}, "rows[0].minute: must be a minute since the epoch"),
        ({"project": ""}, "rows[0].project_id: must be a string of 1 to 40 printable characters."),
        ({"project": None}, "rows[0].project_id: must be a string of 1 to 40 printable characters."),
        ({"token": "t" * 41}, "rows[0].token_id: must be a string of 0 to 40 printable characters."),
        ({"limit": "a\0b"}, "rows[0].limit_name: must be a string of 0 to 64 printable characters."),
        ({"limit": "\ud800"}, "rows[0].limit_name: must be a string of 0 to 64 printable characters."),
        ({"unit": ""}, "rows[0].unit: must be a string of 1 to 64 printable characters."),
        ({"allowed": -1}, "rows[0].allowed: must be an integer from 0 to 1125899906842624, got -1."),
        ({"denied": True}, "rows[0].denied: must be an integer from 0 to 1125899906842624, got True."),
        ({"would_deny": "1"}, "rows[0].would_deny: must be an integer from 0 to 1125899906842624, got '1'."),
        (
            {"cost": 2**50 + 1},
            "rows[0].cost: must be an integer from -1125899906842624 to 1125899906842624, got 1125899906842625.",
        ),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_counted_is_refused(changed, said):
    """The message names the row, the field and the rule."""
    with pytest.raises(InvalidBatch) as refused:
        parse([row(**changed)])

    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "rows",
    ["", "{}", "null", "[1]", "[[]]", "[[1,2,3]]", "[NaN]", "[1e999]", "[1.5]", "[" * 100_000, f"[{'9' * 5000}]"],
    ids=lambda text: text[:20],
)
def test_rows_that_are_none_are_refused(rows):
    """Whatever stands there instead of rows is no crash."""
    with pytest.raises(InvalidBatch):
        parse(rows)


def test_too_many_rows_are_refused():
    """The memory of the worker is bounded."""
    with pytest.raises(InvalidBatch, match="at most 10000"):
        parse([row()] * 10_001)


def test_too_much_text_is_refused():
    """It is not even parsed."""
    with pytest.raises(InvalidBatch, match="at most 1048576 bytes"):
        parse(" " * 1_048_577)


@pytest.mark.parametrize("sign", ["\N{GRINNING FACE}", '"'])
def test_names_that_clients_choose_make_no_batch_too_long(sign):
    """Otherwise the usage of all others in it would be lost."""
    log, limit = UsageLog("proxy-1"), Limit(name="tpm", unit="tokens", quota=10**9, window_seconds=60)
    settlement = Settlement("exact", (0,), Usage(MAX_COUNT, output=MAX_COUNT))
    for number in range(MAX_MODELS):
        body = {"model": f"{number:03d}{sign * 125}", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        asked = read_request("POST", "/v1/chat/completions", lambda name: None, json.dumps(body).encode())
        opening = open_request(asked, [limit], Metering(), NO_PRICES, 0)
        for token in range(MAX_METERED_ROWS_PER_BATCH // MAX_MODELS):
            subject = f"prj_{'a' * 22}", f"tok_{token:022d}"
            log.metering().settled(subject, NOON_MINUTE * 60_000_000, opening, settlement)

    batch = StreamBatch.parse("1-0", log.drain()[0].fields(), NOON)
    assert (len(batch.metered), len(batch.samples)) == (MAX_METERED_ROWS_PER_BATCH, MAX_SAMPLES_PER_BATCH)


@pytest.mark.parametrize("batch_id", ["", "x" * 201, "a\nb"], ids=["empty", "too long", "not printable"])
def test_an_id_that_is_none_is_refused(batch_id):
    """Without it nobody could tell whether the batch was counted before."""
    with pytest.raises(InvalidBatch, match=r"^id: must be a string of 1 to 200"):
        parse([row()], id=batch_id)


def test_missing_fields_are_refused():
    """An entry of somebody else is no batch."""
    with pytest.raises(InvalidBatch):
        StreamBatch.parse("1-0", {"hello": "world"}, NOON)


def test_strings_may_be_as_long_as_the_columns():
    """A longer one would be refused by PostgreSQL, with the whole batch."""
    columns = {
        field.name: field.max_length
        for model in (UsageBatch, UsageRow, MeteredRow, EstimateSample, DeniedRequest)
        for field in model._meta.fields
        if field.name in WIDTHS
    }

    assert columns == WIDTHS
