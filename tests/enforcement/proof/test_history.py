"""The reader of ledgers: a line that breaks the format makes the ledger unreadable."""

import pytest

from enforcement.proof.command import main
from enforcement.proof.history import LedgerError, read
from tests.enforcement.proof.lines import DECLARED, HEADER, LINE


def test_a_whole_ledger_is_read(tmp_path):
    """The control of the next test."""
    path = tmp_path / "a.ledger"
    path.write_text(f"{HEADER}\n{DECLARED}\n{LINE}\n")
    assert len(read(path).records) == 1


@pytest.mark.parametrize(
    ("lines", "line", "rule"),
    [
        ([], 0, "the file is empty"),
        (["{}"], 1, "ledger: must be 1, got None"),
        (['{"ledger":2,"instance":"a","timeout_ms":25}'], 1, "ledger: must be 1, got 2"),
        ([HEADER, LINE], 2, "counters: must be declared by an earlier line"),
        ([HEADER, DECLARED, DECLARED], 3, "counter: must be 1, got 0"),
        ([HEADER, DECLARED.replace('"quota":1', '"quota":-1')], 2, "limit.quota"),
        ([HEADER, DECLARED, LINE[:-9]], 3, "must be JSON"),
        ([HEADER, DECLARED, LINE.replace('"id":"a-1",', "")], 3, "id: is required"),
        ([HEADER, DECLARED, LINE.replace('"id"', '"more":1,"id"')], 3, "more: unknown field"),
        ([HEADER, DECLARED, LINE.replace('"revision":0', '"revision":true')], 3, "revision: must not be bool"),
        ([HEADER, DECLARED, LINE.replace('"revision":0', '"revision":NaN')], 3, "numbers must be finite, got NaN"),
        (
            [HEADER, DECLARED, LINE.replace('"revision":0', '"revision":0,"revision":1')],
            3,
            "must occur only once",
        ),
        (
            [HEADER, DECLARED, LINE.replace('"ended_at_us":2', '"ended_at_us":0')],
            3,
            "ended_at_us: must not be less than",
        ),
        ([HEADER, DECLARED, LINE.replace('"reason":"ok"', '"reason":"limited"')], 3, "reason:"),
        ([HEADER, DECLARED, LINE.replace('"source":"store"', '"source":"guess"')], 3, "source:"),
        ([HEADER, DECLARED, LINE.replace('"costs":[1]', '"costs":[-1]')], 3, "costs:"),
        ([HEADER, DECLARED, LINE.replace('"costs":[1]', '"costs":[]')], 3, "costs: must have as many items"),
    ],
)
def test_a_ledger_that_cannot_be_read_is_no_evidence(tmp_path, capsys, lines, line, rule):
    """The command says in which file, in which line and why, and exits 2."""
    path = tmp_path / "a.ledger"
    path.write_text("".join(f"{text}\n" for text in lines))

    assert main(["verify", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}, line {line}: " in error
    assert rule in error


def test_a_line_that_was_cut_off_is_no_evidence(tmp_path):
    """A disk that was full, or a file still being written."""
    path = tmp_path / "a.ledger"
    path.write_text(f"{HEADER}\n{DECLARED}\n{LINE}")
    with pytest.raises(LedgerError, match="line 3: the line is cut off"):
        read(path)
