"""A process that starts in an outage takes its share of the quotas and no more, also after restarts."""

import json
import os
import stat
import tempfile
import time
from contextlib import ExitStack

import pytest

from enforcement import Limit, Limiter
from enforcement.failover import outage_copy
from enforcement.failover.fallback import Fallback
from enforcement.failover.outage_copy import OutageCopy
from enforcement.failover.private_file import read, write
from enforcement.failover.saved_counter import SavedCounter
from enforcement.model.algorithms import ALGORITHMS, Reference, Spec
from enforcement.settings import Settings
from tests.enforcement.world import eventually
from tests.forks import Forked
from tests.scale import scale

# Most have a store that is away, or that has no documents.
pytestmark = pytest.mark.usefixtures("no_documents")

SHARED_FOLDER = outage_copy.shared_folder  # the tests have none in its place
QUOTA = 100
STARTED, KNOWN = scale(4, 10), scale(2, 4)
# Asks for one key without the store until it is denied, prints what was admitted, and ends when its input does.
TAKER = r"""
import sys
from enforcement import Limit, Limiter
limit = Limit(name="rate", quota=100, window_seconds=86_400)
limiter = Limiter.from_env()
limiter.peek(limit, "other")
print("ready", flush=True)
for line in sys.stdin:
    calls = 0 if line == "look\n" else 120
    print(sum(limiter.hit(limit, "k").allowed for _ in range(calls)), limiter.stats().fleet_size, flush=True)
limiter.close()
"""


class Takers:
    """Processes that take what they may without the store."""

    def __init__(self, stack, url, number, **environ):
        environ = {**os.environ, "SLUICEGATE_REDIS_URL": url, **environ}
        self.processes = [stack.enter_context(Forked(["-c", TAKER], environ)) for _ in range(number)]
        for process in self.processes:
            stack.callback(process.kill)
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"

    def take(self, command="take"):
        """Return what was admitted by each, and the fleet size of each."""
        for process in self.processes:
            process.stdin.write(f"{command}\n")
            process.stdin.flush()
        return [tuple(map(int, process.stdout.readline().split())) for process in self.processes]

    def end(self, kill=False):
        for process in self.processes:
            if kill:
                process.kill()
            else:
                process.stdin.close()
            process.wait(20)
            process.stdout.close()


@pytest.fixture
def away(own_server):
    """Give the URL of a store that is away."""
    own_server.kill()
    return own_server.url


@pytest.mark.proof
def test_processes_that_start_in_an_outage_take_a_share_of_the_given_fleet(away, tmp_path):
    """They start without any knowledge: with SLUICEGATE_FLEET_SIZE they admit L together, and not L each."""
    with ExitStack() as stack:
        taken = Takers(stack, away, STARTED, SLUICEGATE_FLEET_SIZE=str(STARTED)).take()
        assert taken == [(QUOTA // STARTED, 1)] * STARTED
        control = Takers(stack, away, 1, TMPDIR=str(tmp_path))
        assert control.take() == [(QUOTA, 1)]  # nobody told it of others


def test_processes_of_one_host_that_start_in_an_outage_divide_a_quota(away, tmp_path):
    """No setting says how many there are, and no store ever has: they find each other among the temporary files."""
    with ExitStack() as stack:
        takers = Takers(stack, away, STARTED, TMPDIR=str(tmp_path))
        time.sleep(2 * outage_copy.LOOK_SECONDS)  # each looks again, as others may have come since
        taken = takers.take()

    assert min(admitted for admitted, _ in taken) >= QUOTA // STARTED
    assert sum(admitted for admitted, _ in taken) <= QUOTA + 10
    assert stat.S_IMODE((tmp_path / f"sluicegate-{os.geteuid()}").stat().st_mode) == 0o700


def test_processes_that_join_a_fleet_in_an_outage_get_the_least(own_server, tmp_path):
    """The quota is divided among those that know the store. More that start on the same host have a permit each."""
    with ExitStack() as stack:
        known = Takers(stack, own_server.url, KNOWN, TMPDIR=str(tmp_path))
        assert eventually(lambda: known.take("look") == [(0, KNOWN)] * KNOWN, 10.0)
        assert eventually(lambda: fleet_on_disk(tmp_path / f"sluicegate-{os.geteuid()}") == KNOWN)
        own_server.kill()
        admitted = [*known.take(), *Takers(stack, own_server.url, scale(3, 6), TMPDIR=str(tmp_path)).take()]

    assert QUOTA - KNOWN <= sum(count for count, _ in admitted) <= QUOTA + 10


def test_a_folder_that_others_may_read_is_not_shared(tmp_path, monkeypatch):
    """It may be anybody's, and a link leads anywhere."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"sluicegate-{os.geteuid()}"
    assert SHARED_FOLDER() == folder
    folder.chmod(0o755)
    assert SHARED_FOLDER() is None
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert SHARED_FOLDER() is None
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert SHARED_FOLDER() is None


@pytest.mark.proof
@pytest.mark.parametrize("kill", scale([True], [False, True]))
def test_a_restart_with_a_state_directory_takes_no_second_share(own_server, tmp_path, kill):
    """Instances that know of each other are restarted twice in an outage: L + E at most in a window."""
    with ExitStack() as stack:
        known = Takers(stack, own_server.url, KNOWN, SLUICEGATE_STATE_DIR=str(tmp_path))
        assert eventually(lambda: known.take("look") == [(0, KNOWN)] * KNOWN, 10.0)
        assert eventually(lambda: fleet_on_disk(tmp_path) == KNOWN)
        own_server.kill()
        admitted = [known.take()]
        for _ in range(2):
            if kill:  # within a second of what was admitted last it is on the disk
                assert eventually(lambda: shares_on_disk(tmp_path) == total(admitted))
            known.end(kill)
            known = Takers(stack, own_server.url, KNOWN, SLUICEGATE_STATE_DIR=str(tmp_path))
            admitted.append(known.take())
        known.end()

    assert {size for taken in admitted for _, size in taken} == {KNOWN}
    assert QUOTA - KNOWN <= total(admitted) <= QUOTA + KNOWN
    assert total(admitted[:1]) == total(admitted)


ALGORITHM_LIMITS = [
    Limit(name=name, algorithm=name, quota=20, window_seconds=86_400)
    for name in ("fixed_window", "sliding_window", "sliding_log", "token_bucket")
]


# Forks two processes for each line of its input, as a server does that loads the application first. It prints what they
# admitted, and kills them at the next line.
FORKER = r"""
import os, signal, sys
from enforcement import Limit, Limiter
limit = Limit(name="rate", quota=100, window_seconds=86_400)
limiter = Limiter("redis://127.0.0.1:1/0", timeout=0.01, state_dir=sys.argv[1], fleet_size=2)
limiter.peek(limit, "k")
children = []
for line in sys.stdin:
    while children:
        os.kill(children[-1], signal.SIGKILL)
        os.waitpid(children.pop(), 0)
    for _ in range(2):
        reading, writing = os.pipe()
        children.append(os.fork())
        if not children[-1]:
            os.write(writing, b"%d" % sum(limiter.hit(limit, "k").allowed for _ in range(120)))
            signal.pause()
        os.close(writing)
        print(os.read(reading, 9).decode(), flush=True)
for child in children:
    os.kill(child, signal.SIGKILL)
limiter.close()
"""


def test_forked_processes_take_no_second_share(tmp_path):
    """Each has a file of its own, beside that of the parent, and those forked after their death take the files over."""
    with Forked(["-c", FORKER, str(tmp_path)]) as process:
        admitted = []
        for _ in range(3):
            process.stdin.write("fork\n")
            process.stdin.flush()
            admitted.append([int(process.stdout.readline()) for _ in range(2)])
            assert eventually(lambda: shares_on_disk(tmp_path) == 100)
        process.stdin.close()
    assert admitted == [[50, 50], [0, 0], [0, 0]]
    assert len(list(tmp_path.glob("*.lock"))) == 3


def test_each_algorithm_takes_no_second_share_after_a_restart(tmp_path):
    """All local counters are in one file, and one of a bucket has a float in it. Nothing of it may get lost."""
    admitted = []
    for _ in range(3):
        with Limiter("redis://127.0.0.1:1/0", state_dir=tmp_path, timeout=0.01) as limiter:
            admitted.append([sum(limiter.hit(limit, "k").allowed for _ in range(30)) for limit in ALGORITHM_LIMITS])
            assert limiter.stats().disk_failures == 0
    assert admitted == [[20] * 4, [0] * 4, [0] * 4]


def test_a_counter_that_cannot_be_read_does_not_take_the_others_with_it(tmp_path, caplog):
    """A release may write counters that an earlier one does not know."""
    limit = ALGORITHM_LIMITS[0]
    with Limiter("redis://127.0.0.1:1/0", state_dir=tmp_path, timeout=0.01) as limiter:
        assert sum(limiter.hit(limit, "k").allowed for _ in range(30)) == 20
    [path] = tmp_path.glob("shares-*-0")
    header = outage_copy._SHARES_HEADER
    write(path, header, [b'["new","x",[1],1]\n', *(line + b"\n" for line in read(path, header))])

    with Limiter("redis://127.0.0.1:1/0", state_dir=tmp_path, timeout=0.01) as limiter:
        assert not limiter.hit(limit, "k").allowed
        assert limiter.stats().disk_failures == 1
    assert f"Ignored a local counter in {path}" in caplog.text


def total(admitted):
    return sum(rows for taken in admitted for rows, _ in taken)


def fleet_on_disk(folder):
    return next((int(path.read_text().splitlines()[1]) for path in folder.glob("fleet-*")), 0)


def shares_on_disk(folder):
    """Return how many permits of fixed windows the files say were admitted."""
    rows = [json.loads(line) for path in folder.glob("shares-*-?") for line in path.read_text().splitlines()[1:-1]]
    return sum(values[0] for _, _, values, _ in rows)


def test_two_processes_take_over_two_files(tmp_path):
    """A file belongs to one process at a time, and to another one as soon as that one has ended."""
    copies = [OutageCopy(tmp_path, "x", Fallback(held=lambda key: {})) for _ in range(3)]
    for copy in copies[:2]:
        copy.open()
        copy.open()  # as a limiter that is started twice
    assert sorted(path.name for path in tmp_path.glob("*.lock")) == ["shares-x-0.lock", "shares-x-1.lock"]
    copies[0].close(7)
    copies[2].open()
    assert len(list(tmp_path.glob("*.lock"))) == 2
    assert copies[2].fleet_size == 7
    for copy in copies:
        copy.close(7)


@pytest.mark.parametrize("spoil", [lambda text: text[:-9], lambda text: text.replace(b"1", b"2"), lambda text: b""])
def test_a_spoilt_file_is_ignored_and_counted(tmp_path, spoil, caplog):
    """Half of the truth is not used, nobody fails, and the statistics say so."""
    with Limiter("redis://127.0.0.1:1/0", state_dir=tmp_path, timeout=0.01) as limiter:
        limiter.hit(Limit(name="rate", quota=100, window_seconds=86_400), "k")
    [path] = tmp_path.glob("shares-*-0")
    path.write_bytes(spoil(path.read_bytes()))

    with Limiter("redis://127.0.0.1:1/0", state_dir=tmp_path, timeout=0.01) as limiter:
        assert limiter.stats().disk_failures == 1
    assert f"Ignored {path}" in caplog.text


def test_a_folder_that_cannot_be_written_costs_no_decision(tmp_path, caplog):
    """It is logged once, and counted."""
    (tmp_path / "file").write_text("")
    with Limiter("redis://127.0.0.1:1/0", state_dir=tmp_path / "file", timeout=0.01) as limiter:
        assert limiter.hit(Limit(name="rate", quota=100, window_seconds=86_400), "k").allowed
        assert limiter.stats().disk_failures >= 1
    assert caplog.text.count("Cannot keep the local counters in") == 1


@pytest.mark.parametrize("letter", ["f", "r", "s", "l", "b"])
def test_a_saved_counter_decides_as_before(letter):
    """For each algorithm, at any later instant; slots are not saved, as they end with the process that holds them."""
    second = 1_000_000
    days = *(100 * second * day for day in range(4)), 1, 1_000 * second
    spec = {
        "r": Spec("r", 15, 10, days),
        "b": Spec("b", 10, 2, (30 * second,)),
    }.get(letter, Spec(letter, 10, 60 * second))
    kept, restored = Reference(), Reference()
    for at in range(0, 50, 7):
        kept.decide(at * second, [("k", spec, 1)])
        restored.counters.clear()
        saved = json.loads(json.dumps(SavedCounter.of("k", kept.counters["k"]).to_json()))
        restored.counters["k"] = SavedCounter.from_json(saved).counter()
        for later in (at, at + 3, at + 61, at + 200):
            replies = [it.decide(later * second, [("k", spec, 2)], charge=False) for it in (kept, restored)]
            assert replies[0] == replies[1]
    assert not SavedCounter.takes(ALGORITHMS["c"]())


def test_a_long_log_is_saved_short_and_ends_no_earlier():
    """What was admitted counts until its last charge has left."""
    log, spec = Reference(), Spec("l", 5_000, 60_000_000)
    for at in range(2_000):
        log.decide(at, [("k", spec, 1)])
    short = SavedCounter.of("k", log.counters["k"])

    assert short.values == ([1_999], [0, 2_000])


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], ["k", "c", [1], 1], ["k", "f", [1, 2], 1], ["k", "f", [1, True, 2], 1], ["k", "f", [1, [2], 3], 1]),
        *(["k", "l", [[1], [0]], 1], ["k", "l", [1, 2], 1], ["k", [], [1, 2, 3], 1], [1, "f", [1, 2, 3], 1]),
    ],
)
def test_other_values_are_no_saved_counters(value):
    """A file of another format must not become a limit of nothing."""
    with pytest.raises(ValueError, match=r"must have|must be"):
        SavedCounter.from_json(value)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "four", "100001", "1000000000000000000"])
def test_a_fleet_size_is_an_integer(text):
    """The error names the variable, the rule and the value."""
    with pytest.raises(ValueError, match=rf"SLUICEGATE_FLEET_SIZE: must be an integer from 1 to 100000, got '{text}'"):
        Settings.from_env({"SLUICEGATE_FLEET_SIZE": text})
    with pytest.raises(ValueError, match="fleet_size: must be an integer from 1 to 100000, got 0"):
        Limiter(fleet_size=0)
    assert Settings.from_env({"SLUICEGATE_FLEET_SIZE": "12"}).fleet_size == 12


def test_the_copy_is_bounded(monkeypatch):
    """A process with many keys keeps those charged last."""
    monkeypatch.setattr("enforcement.failover.shares.MAX_SAVED", 3)
    with Limiter("redis://127.0.0.1:1/0", timeout=0.01) as limiter:
        for number in range(10):
            limiter.hit(Limit(name="rate", quota=100, window_seconds=86_400), f"k{number}")
        assert len(list(limiter._engine.fallback.saved())) == 3
    assert outage_copy.KEEP_SECONDS == 1.0
