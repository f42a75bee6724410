"""The ledger and its checker: what holds is told from what does not, and evidence that cannot be read is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcement import Limit, Limiter
from enforcement.ledger.__main__ import main
from enforcement.ledger.claims import Evidence, Reading, Terms, judge
from enforcement.ledger.records import Counter, Ledger, LedgerError, Record, read
from enforcement.ledger.sums import felt, peak, window_of
from enforcement.model.algorithms import Reference
from enforcement.plan.plan import BoundLimit
from tests.scale import scale

SECOND = 1_000_000
START = 1_767_225_600 * SECOND
HOUR = Limit(name="rate", quota=10, window_seconds=3_600)
COUNTER = Counter("sg:{k}:f", HOUR)


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
    log = Counter("sg:{k}:l", Limit(name="rate", algorithm="sliding_log", quota=10, window_seconds=3_600))
    across = Book(counter=log).write(count=10, at=3_590).write(count=10, at=3_610)
    assert broken(across) == {"rate: admitted in a window with the store": "20 (worst of 1)"}


def test_a_bucket_may_be_emptied_and_refilled_no_faster():
    """Two in the beginning and one each second are what it gives; one more is not."""
    bucket = Limit(name="rate", algorithm="token_bucket", quota=1, window_seconds=1, burst=2)
    book = Book(counter=Counter("sg:{k}:b", bucket)).write(count=2)
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
    counter = Counter("sg:{k}:f", Limit(name="rate", quota=10, window_seconds=3_600, on_store_failure="deny"))
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
        (lambda book: book.write(ident="a-0"), "request ids that stand twice"),
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
    found = broken(book, readings=[Reading(COUNTER, START + SECOND, used)])
    assert (found == {}) is held


# A charge that is counted into a neighbouring window shows within a few histories of sixty calls.
EXAMPLES = scale(40, 2_000)


def algorithms():
    """Return a limit of each algorithm that counts."""
    return [
        HOUR,
        Limit(name="rate", quota=10, calendar="hour", time_zone="Europe/Berlin"),
        Limit(name="rate", algorithm="sliding_window", quota=10, window_seconds=60),
        Limit(name="rate", algorithm="sliding_log", quota=10, window_seconds=60),
        Limit(name="rate", algorithm="token_bucket", quota=7, window_seconds=60, burst=10),
    ]


@pytest.mark.proof
@pytest.mark.parametrize("limit", algorithms(), ids=lambda limit: limit.calendar or limit.algorithm)
@settings(max_examples=EXAMPLES, deadline=None)
@given(asked=st.lists(st.tuples(st.integers(0, 40 * SECOND), st.integers(1, 4)), max_size=60))
def test_sums_agree_with_the_algorithms(limit, asked):
    """Counted by other means, no history of the reference exceeds its limit, and what is felt is what it has used."""
    reference, bound, now, charges = Reference(), BoundLimit(limit, "k", "key"), START, []
    for stride, cost in asked:
        now += stride
        if reference.decide(now, [("k", bound.spec(now), cost)])[0]:
            charges.append((now, cost))
    remaining = reference.decide(now, [("k", bound.spec(now), 0)])[2]

    windows = {window_of(limit, at) for at, _ in charges}
    parts = [[charge for charge in charges if window_of(limit, charge[0]) == window] for window in windows]
    assert all(peak(limit, part) <= limit.capacity for part in parts)
    assert felt(limit, charges, now) == limit.capacity - remaining


# The command.


def run(*arguments):
    """Run the command as a person does."""
    command = [sys.executable, "-m", "enforcement.ledger", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_store_is_proved_by_two_commands(server, world, tmp_path, capsys):
    """Two processes are told to ask too often; all claims hold, until somebody else charges the counter."""
    asked = ["--limit", "30/day", "--key", "proof", "--processes", 2, "--calls", 40, "--timeout", "1"]
    made = run("load", "--url", server.url, *asked, "--out", tmp_path)
    ledgers = made.stdout.split()
    assert (made.returncode, len(ledgers)) == (0, 2), made.stderr

    proof = ["verify", *ledgers, "--redis", server.url, "--saturated", "--margin-ms", "200"]
    assert main(proof) == 0
    assert "30-per-day: admitted in a window with the store" in capsys.readouterr().out
    assert main([*proof, "--json", "--timeout-ms", "0.001", "--margin-ms", "0"]) == 1
    claims = {claim["claim"]: claim["held"] for claim in json.loads(capsys.readouterr().out)}
    assert (claims["a decision takes"], claims["request ids that stand twice"]) == (False, True)

    with Limiter(server.url, timeout=1.0) as other:
        other.reset(Limit.parse("30/day"), "proof")
    assert main(proof) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_a_token_is_checked_and_not_written_down(server, world, tmp_path, capsys):
    """Its policies are the limits, and the ledger names them; a secret does not belong on a disk."""
    secret = world.everything({"name": "rpm", "algorithm": "fixed_window", "quota": 5, "window_seconds": 86_400})
    (tmp_path / "token").write_text(secret + "\n")
    made = run("load", "--url", server.url, "--token-file", tmp_path / "token", "--calls", 9, "--out", tmp_path)
    [ledger] = made.stdout.split()

    assert secret not in Path(ledger).read_text()
    assert main(["verify", ledger, "--redis", server.url, "--late", "9"]) == 0
    assert "api/rpm: admitted in a window with the store" in capsys.readouterr().out


HEADER = '{"ledger":1,"instance":"a","timeout_ms":25.0}'
DECLARED = (
    '{"counter":0,"key":"sg:{k}:f","policy":"",'
    '"limit":{"name":"rate","algorithm":"fixed_window","quota":1,"window_seconds":60}}'
)
LINE = (
    '{"id":"a-1","started_at_us":1,"ended_at_us":2,"decided_at_us":1,"allowed":true,"reason":"ok","source":"store",'
    '"cause":"","ambiguous":false,"revision":0,"counters":[0],"costs":[1],"denied_by":[]}'
)


def test_a_whole_ledger_is_read(tmp_path):
    """The control of the next test."""
    path = tmp_path / "a.ledger"
    path.write_text(f"{HEADER}\n{DECLARED}\n{LINE}\n")
    assert len(read(path).records) == 1


@pytest.mark.parametrize(
    ("lines", "line", "rule"),
    [
        ([], 0, "it is empty"),
        (["{}"], 1, "not a ledger"),
        (['{"ledger":2,"instance":"a","timeout_ms":25}'], 1, "format 1"),
        ([HEADER, LINE], 2, "counters: names one that no line before declares"),
        ([HEADER, DECLARED, DECLARED], 3, "counter: the next number is 1"),
        ([HEADER, DECLARED.replace('"quota":1', '"quota":-1')], 2, "limit.quota"),
        ([HEADER, DECLARED, LINE[:-9]], 3, "it is not JSON"),
        ([HEADER, DECLARED, LINE.replace('"id":"a-1",', "")], 3, "id: is required"),
        ([HEADER, DECLARED, LINE.replace('"id"', '"more":1,"id"')], 3, "more: unknown field"),
        ([HEADER, DECLARED, LINE.replace('"revision":0', '"revision":true')], 3, "revision: has the wrong type"),
        ([HEADER, DECLARED, LINE.replace('"revision":0', '"revision":NaN')], 3, "NaN is not a number"),
        ([HEADER, DECLARED, LINE.replace('"revision":0', '"revision":0,"revision":1')], 3, "a field stands twice"),
        ([HEADER, DECLARED, LINE.replace('"ended_at_us":2', '"ended_at_us":0')], 3, "ended_at_us: must not lie before"),
        ([HEADER, DECLARED, LINE.replace('"reason":"ok"', '"reason":"limited"')], 3, "reason:"),
        ([HEADER, DECLARED, LINE.replace('"source":"store"', '"source":"guess"')], 3, "source:"),
        ([HEADER, DECLARED, LINE.replace('"costs":[1]', '"costs":[-1]')], 3, "costs:"),
        ([HEADER, DECLARED, LINE.replace('"costs":[1]', '"costs":[]')], 3, "costs: must be as many"),
    ],
)
def test_a_ledger_that_cannot_be_read_is_no_evidence(tmp_path, capsys, lines, line, rule):
    """The command says in which file, in which line and why, and exits 2."""
    path = tmp_path / "a.ledger"
    path.write_text("".join(f"{text}\n" for text in lines))

    assert main(["verify", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{path}, line {line}: " in said
    assert rule in said


def test_a_line_that_was_cut_off_is_no_evidence(tmp_path):
    """A disk that was full, or a file still being written."""
    path = tmp_path / "a.ledger"
    path.write_text(f"{HEADER}\n{DECLARED}\n{LINE}")
    with pytest.raises(LedgerError, match="line 3: the line is cut off"):
        read(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "/nowhere/a.ledger"], "/nowhere/a.ledger, line 0: No such file"),
        (["load"], "give --limit or --limits, or else --token-file"),
        (["load", "--limit", "often"], '--limit: text: Must be like "100/minute"'),
        (["load", "--limits", "{}"], "must be a JSON list"),
        (["load", "--limits", '[{"quota":1}]'], "window_seconds"),
        (["load", "--token-file", "/nowhere/token"], "/nowhere/token: No such file"),
    ],
)
def test_a_command_that_cannot_be_run_says_why(arguments, said, capsys, tmp_path):
    """One sentence on standard error and status 2."""
    extra = ["--out", str(tmp_path), "--instance", "x"] if arguments[0] == "load" else []
    assert main([*arguments, *extra]) == 2
    assert said in capsys.readouterr().err


def test_a_store_that_cannot_be_asked_is_no_proof(tmp_path, capsys):
    """A claim about counters that nobody read is not held."""
    path = tmp_path / "a.ledger"
    path.write_text(f"{HEADER}\n{DECLARED}\n{LINE}\n")
    assert main(["verify", str(path), "--redis", "redis://127.0.0.1:1/0"]) == 2
    assert "the store does not answer" in capsys.readouterr().err
    assert main(["verify", str(path), "--limits", '[{"name":"other","quota":1,"window_seconds":60}]']) == 2
    assert "no ledger knows of 'other'" in capsys.readouterr().err
