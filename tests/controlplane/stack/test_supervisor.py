"""The supervisor: order, readiness, restarts, and an end that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.stack.locks import StackError
from controlplane.stack.supervisor import Service, Supervisor, supervised
from tests.enforcement.world import eventually
from tests.loops import run

STAY = "import time; time.sleep(600)"


class Journal:
    """What the processes printed, as pairs of name and line."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def make(tmp_path: Path, journal: Journal) -> Callable[..., Supervisor]:
    def build(*services: Service) -> Supervisor:
        return Supervisor(lambda: services, tmp_path / "run", journal)

    return build


def service(name: str, program: str, **options: object) -> Service:
    return Service(name, [sys.executable, "-S", "-u", "-c", program], dict(os.environ), **options)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_running(pid: int) -> bool:
    """Whether a process does more than wait to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_service_starts_when_those_it_needs_are_ready(make, journal: Journal, tmp_path: Path) -> None:
    """Nothing starts before what it depends on answers."""
    flag = tmp_path / "flag"
    store = service("store", f"print('up'); open({str(flag)!r}, 'w'); {STAY}", ready=flag.exists)
    web = service("web", f"import os; print(os.path.exists({str(flag)!r})); {STAY}", after=("store",))

    with supervised(make(web, store)):
        assert eventually(lambda: len(journal.lines) == 2)

    assert journal.lines == [("store", "up"), ("web", "True")]


def test_dependants_are_stopped_first(make, journal: Journal) -> None:
    """The store is stopped last: those who write to it end their work before."""
    say_goodbye = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('bye'), sys.exit()))\n"
        "print('ready')\n"
        "time.sleep(600)"
    )
    services = [service("store", say_goodbye), service("web", say_goodbye, after=("store",))]

    with supervised(make(*services)):
        assert eventually(lambda: len(journal.lines) == 2)

    assert journal.lines[2:] == [("web", "bye"), ("store", "bye")]


def test_service_that_does_its_work_once_comes_before_its_dependants(make, journal: Journal) -> None:
    """A migration has ended well before the web server starts, and is not run again."""
    services = [service("migrate", "print('migrated')", once=True), service("web", STAY, after=("migrate",))]

    with supervised(make(*services)):
        pass

    assert journal.lines == [("migrate", "migrated")]


def test_failed_migration_fails_the_start(make, tmp_path: Path) -> None:
    """What must be done once and fails stops the start, and starts nothing that needs it."""
    touched = tmp_path / "touched"
    web = service("web", f"open({str(touched)!r}, 'w')", after=("migrate",))

    with pytest.raises(StackError, match="migrate ended with exit code 3 before it was ready"):
        run(make(service("migrate", "raise SystemExit(3)", once=True), web).start())

    assert not touched.exists()


def test_service_that_never_gets_ready_fails_the_start(make, journal: Journal) -> None:
    """A process that runs and does not answer is ended, and the start fails with its name."""
    deaf = service("deaf", STAY, ready=lambda: False, ready_seconds=0.2)

    with pytest.raises(StackError, match="deaf ended with exit code -9"):
        run(make(deaf).start())

    assert journal.lines == [("deaf", "was not ready within 0 s")]


def test_crashed_service_is_started_again(make) -> None:
    """A process that ends by itself comes back."""
    supervisor = make(service("web", STAY))
    with supervised(supervisor):
        first = supervisor.pid("web")
        os.kill(first, signal.SIGKILL)

        assert eventually(lambda: runs(supervisor, "web") and supervisor.pid("web") != first)


def test_restarts_come_at_growing_intervals(make, journal: Journal) -> None:
    """A process that cannot live does not keep the machine busy."""
    with supervised(make(service("web", "import time; time.sleep(0.1)"))):
        assert eventually(lambda: len(journal.lines) == 3)

    assert [line for _, line in journal.lines[:3]] == [
        "ended with exit code 0, restarting in 0.2 s",
        "ended with exit code 0, restarting in 0.4 s",
        "ended with exit code 0, restarting in 0.8 s",
    ]


def test_service_taken_down_stays_down_until_it_is_brought_back(make) -> None:
    """An outage lasts as long as the one who made it wants."""
    supervisor = make(service("store", STAY))
    with supervised(supervisor) as run:
        run(supervisor.take_down("store"))
        assert not runs(supervisor, "store")

        run(supervisor.bring_back("store"))

        assert runs(supervisor, "store")


def test_stop_ends_the_children_of_a_service(make, journal: Journal) -> None:
    """A whole process group ends, even a child that its parent forgot."""
    forgetful = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {STAY!r}]).pid); {STAY}"

    with supervised(make(service("web", forgetful))):
        assert eventually(lambda: journal.lines)
    child = int(journal.lines[0][1])

    assert eventually(lambda: not is_alive(child))


def test_crash_is_noticed_while_children_live_on(make, journal: Journal) -> None:
    """A killed leader is replaced at once, and what it left of its group ends with it."""
    leader = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {STAY!r}]).pid); {STAY}"
    supervisor = make(service("web", leader))
    with supervised(supervisor):
        assert eventually(lambda: journal.lines)
        first = supervisor.pid("web")
        os.kill(first, signal.SIGKILL)

        assert eventually(lambda: runs(supervisor, "web") and supervisor.pid("web") != first)
        assert eventually(lambda: not is_alive(int(journal.lines[0][1])))


def test_deaf_service_is_killed_after_its_grace(make, journal: Journal) -> None:
    """A process that ignores SIGTERM delays the end by its grace and no longer."""
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); {STAY}"
    supervisor = make(service("web", deaf, grace_seconds=0.2))

    with supervised(supervisor):
        assert eventually(lambda: journal.lines)
        pid = supervisor.pid("web")

    assert not is_alive(pid)


def test_frozen_service_is_stopped(make) -> None:
    """A frozen process is ended by request too, not only by force."""
    supervisor = make(service("store", STAY, grace_seconds=60))

    with supervised(supervisor):
        pid = supervisor.pid("store")
        os.kill(pid, signal.SIGSTOP)

    assert not is_alive(pid)


def test_second_supervisor_is_refused(make) -> None:
    """Two stacks on one set of data would ruin it; the message names the process that runs the first."""
    with supervised(make()), pytest.raises(StackError, match=rf"is already running \(process {os.getpid()}\)"):
        run(make().start())


def test_leftovers_of_a_killed_supervisor_are_ended(make, tmp_path: Path) -> None:
    """After kill -9 of the supervisor the next start ends what still runs, and starts afresh."""
    orphan = leave_an_orphan(tmp_path / "run")
    assert is_alive(orphan)
    supervisor = make(service("web", STAY))

    with supervised(supervisor):
        assert eventually(lambda: not is_alive(orphan))
        assert supervisor.pid("web") != orphan


def test_ports_of_leftovers_are_free_when_the_stack_is_described(tmp_path: Path, journal: Journal) -> None:
    """What is described after a hard kill finds the world as it was before the first start."""
    orphan = leave_an_orphan(tmp_path / "run")
    seen: list[bool] = []

    def describe() -> list[Service]:
        seen.append(is_running(orphan))
        return []

    with supervised(Supervisor(describe, tmp_path / "run", journal)):
        assert seen == [False]


def test_refused_supervisor_describes_nothing(make, tmp_path: Path, journal: Journal) -> None:
    """A second start must not write over the files of the stack that runs."""
    refused = Supervisor(lambda: pytest.fail("was described"), tmp_path / "run", journal)

    with supervised(make()), pytest.raises(StackError):
        run(refused.start())


def test_stale_pid_in_a_lock_file_harms_nobody(make, tmp_path: Path) -> None:
    """A pid that now belongs to a stranger is not believed: nobody holds the lock."""
    with subprocess.Popen([sys.executable, "-c", STAY], start_new_session=True) as stranger:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "web.lock").write_text(f"{stranger.pid:<20}\n")

        with supervised(make(service("web", STAY))):
            assert stranger.poll() is None
        stranger.kill()


def test_long_line_is_passed_on_whole(make, journal: Journal) -> None:
    """A line longer than any buffer neither stops the output nor is torn."""
    talker = service("web", f"print('x' * 200_000); print('end'); {STAY}")

    with supervised(make(talker)):
        assert eventually(lambda: len(journal.lines) == 2)

    assert journal.lines == [("web", "x" * 200_000), ("web", "end")]


def runs(supervisor: Supervisor, name: str) -> bool:
    try:
        return is_alive(supervisor.pid(name))
    except StackError:
        return False


def leave_an_orphan(directory: Path) -> int:
    """Run a supervisor in a process of its own, kill it, and return the process id of the service it leaves."""
    program = (
        "import asyncio, os, sys; from pathlib import Path\n"
        "from controlplane.stack.supervisor import Service, Supervisor\n"
        "async def main():\n"
        f"    web = Service('web', [sys.executable, '-c', {STAY!r}], dict(os.environ))\n"
        f"    supervisor = Supervisor(lambda: [web], Path({str(directory)!r}), print)\n"
        "    await supervisor.start()\n"
        "    print(supervisor.pid('web'), flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        orphan = int(supervisor.stdout.readline())
        supervisor.kill()
    return orphan
