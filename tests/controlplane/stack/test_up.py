"""``manage.py up`` as a person runs it: in a checkout of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import redis
from django.core.management import CommandError, call_command

from controlplane.stack.management.commands import up as command
from enforcement.embedded import ValkeyServer
from tests.controlplane.forks import start_manage
from tests.controlplane.stack.running import SECONDS, Run, checkout, eventually, own_environment, up
from tests.scale import scale


def test_without_a_server_it_ends_with_a_sentence(monkeypatch, settings, tmp_path):
    """As without the extra 'embedded', and not with a traceback."""

    async def describe(supervisor, announce) -> None:
        command.embedded.build(settings.BASE_DIR, tmp_path, {})

    settings.VAR_DIR = tmp_path
    monkeypatch.setenv("SLUICEGATE_VALKEY_BINARY", str(tmp_path / "none"))
    monkeypatch.setattr(command, "serve", describe)
    with ThreadPoolExecutor(1) as pool, pytest.raises(CommandError, match="must be an executable file, got"):
        pool.submit(call_command, "up").result()


def text(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


def is_running(group: int) -> bool:
    """Whether a process of the group does more than wait to be buried."""
    return any(state != "Z" for state, its_group in processes() if its_group == group)


def processes() -> Iterator[tuple[str, int]]:
    """State and group of every process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            state, _, group, *_ = path.read_text().rsplit(")", 1)[1].split()
            yield state, int(group)


def get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as refused:
        refused.close()
        return refused.code


def used_before(folder: Path) -> Path:
    """Leave what version 0.2 left: files that every user can read, and the data of a store without a password."""
    var = folder / "var"
    (var / "static").mkdir()
    (var / "celerybeat-schedule").write_bytes(b"")
    with ValkeyServer(var / "valkey") as store, redis.Redis.from_url(store.url) as client:
        client.set("counted-by-0.2", 7)
    for path in (var, *var.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Run]:
    folder = used_before(checkout(tmp_path_factory.mktemp("up"), migrated))
    with up(folder, {}) as run:
        yield run


@functools.cache
def store_url(run: Run) -> str:
    """The address that the command prints for a shell."""
    said = run.manage("env").stdout
    assert said.startswith("export SLUICEGATE_REDIS_URL=redis://:")
    return said.partition("=")[2].strip()


def test_control_plane_is_ready(running: Run) -> None:
    """The web server reaches its database and its store."""
    assert get(f"{running.web_url}/readyz") == 200


def test_three_proxies_ask_for_a_token(running: Run) -> None:
    """The door stands in front of the upstream in each of three proxies."""
    assert [get(f"{address}/") for address in running.proxies()] == [401, 401, 401]


def test_other_commands_of_the_checkout_reach_the_stack(running: Run) -> None:
    """What `up` chose, the key and the store, is known to every other command without a variable."""
    done = running.manage("publish", "--all")

    assert done.returncode == 0
    assert "Published revision" in done.stdout


def test_other_users_can_read_nothing(running: Run) -> None:
    """Database, secrets and the data of the store are private, those that version 0.2 left readable included."""
    var = running.folder / "var"
    modes = {str(path.relative_to(var)): path.stat().st_mode & 0o077 for path in (var, *var.rglob("*"))}

    assert {name for name, mode in modes.items() if mode} == set()
    assert {"controlplane.sqlite3", "redis_url", "valkey/appendonlydir", "celerybeat-schedule"} <= modes.keys()
    assert any(name.endswith(".aof") for name in modes)


def test_other_users_cannot_use_the_store(running: Run) -> None:
    """Any user of the machine reaches the port. Without the password it answers nothing and takes nothing."""
    port = int(store_url(running).rpartition(":")[2].partition("/")[0])

    with redis.Redis(port=port) as stranger:
        with pytest.raises(redis.AuthenticationError):
            stranger.get("counted-by-0.2")
        with pytest.raises(redis.AuthenticationError):
            stranger.set("sg:{doc}:documents", "forged")


def test_address_that_is_printed_for_a_shell_opens_the_store(running: Run) -> None:
    """The data of version 0.2 is there, behind the new password."""
    with redis.Redis.from_url(store_url(running)) as client:
        assert client.get("counted-by-0.2") == b"7"


def test_password_of_the_store_is_neither_shown_nor_logged(running: Run) -> None:
    """It is in no line of output and, for every user can read those, in no command line."""
    password = (running.folder / "var" / "store_password").read_text().strip()
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    held = {path.name for path in (running.folder / "var").rglob("*") if path.is_file() and password in text(path)}

    assert len(password) > 30
    assert password not in running.said()
    assert not any(password.encode() in line for line in lines)
    assert held == {"store_password", "redis_url", "valkey.conf"}


def test_commands_that_are_named_work_from_any_folder(tmp_path: Path) -> None:
    """
    A stack that never ran has no environment: nobody is sent to another store by guessing.

    A person pastes the command that the error names into a shell, also if the checkout lies elsewhere and its path has
    a blank.
    """
    folder = checkout(tmp_path / "my checkout")
    command = [sys.executable, str(folder / "manage.py"), "env"]
    done = subprocess.run(command, cwd=tmp_path, env=own_environment(), capture_output=True, text=True, check=False)
    before, _, named = done.stderr.strip().rpartition(" Start the stack first: ")

    assert (done.returncode, done.stdout) == (1, "")
    assert "var/redis_url is missing." in before
    named = named.removesuffix(" up")
    help_text = subprocess.run(f"{named} help up", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Run the whole platform" in help_text.stdout


def test_link_of_the_first_account_opens_its_form(running: Run) -> None:
    """The link is signed with the key that the web process got, and the form needs no other preparation."""
    (link,) = re.findall(r"First account   (\S+)", running.said())

    with urllib.request.urlopen(link, timeout=10) as response:
        assert (response.status, b"Create the first account" in response.read()) == (200, True)


def test_first_address_leads_to_the_admin(running: Run) -> None:
    """Whoever types the host and the port alone gets to the log-in."""
    with urllib.request.urlopen(running.web_url, timeout=10) as response:
        assert response.url == f"{running.web_url}/admin/login/?next=/admin/"


def test_second_start_is_refused_and_harms_nothing(running: Run) -> None:
    """The stack that runs goes on, also through a restart of its store."""
    second = running.manage("up")
    os.kill(running.groups()["valkey"], signal.SIGKILL)

    assert second.returncode == 1
    assert f"is already running (process {running.process.pid})" in second.stderr
    assert eventually(lambda: get(f"{running.web_url}/readyz") == 200)


def test_named_store_is_used_and_none_is_started(tmp_path: Path, migrated: Path) -> None:
    """
    With REDIS_URL the stack brings no store of its own, publishes to that one, and leaves it running.

    Ctrl-C leaves no process and exits with 0.
    """
    with ValkeyServer() as store:
        with up(checkout(tmp_path, migrated), {"REDIS_URL": store.url}) as run:
            assert "valkey" not in run.groups()
            with redis.Redis.from_url(store.url) as client:
                assert eventually(lambda: client.exists("sg:{doc}:documents"))
        assert store.answers()

    assert run.process.returncode == 0
    assert not any(is_running(group) for group in run.groups().values())


@pytest.fixture
def killed(running: Run, tmp_path: Path, migrated: Path) -> Run:
    """A stack whose supervisor is killed: that of the tests above, and for a proof, which is repeated, another one."""
    with up(checkout(tmp_path, migrated), {}) if scale(False, True) else nullcontext(running) as run:
        run.process.kill()
        run.process.wait()
    return run


@pytest.mark.proof(times=3)
def test_kill_is_mended_and_a_reader_that_leaves_stops_everything_in_order(killed: Run, tmp_path: Path) -> None:
    """
    After kill -9 the next start ends what was left, at the same address.

    `make up | head` leaves no process, and none that waits for ever to write a line.
    """
    port = killed.web_url.rpartition(":")[2]
    left, given = killed.groups(), {**own_environment(), "SLUICEGATE_PORT": port}
    reading, writing = os.pipe()
    with open(reading) as output, (tmp_path / "errors").open("wb") as errors:
        process = start_manage(killed.folder, ["up"], given, writing, errors.fileno())
        os.close(writing)
        lines = list(until("Stop  ", output))
        assert not any(is_running(group) for group in left.values())
        assert any(f"{killed.web_url}/admin/" in line for line in lines)
        groups = killed.groups()
        output.close()
        os.kill(groups["web"], signal.SIGHUP)  # gunicorn writes a line

        assert process.wait(SECONDS) == 0
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert not any(is_running(group) for group in groups.values())


def until(text: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield lines, up to the first that has a text."""
    for line in lines:
        yield line
        if text in line:
            return
    raise AssertionError(f"No line had {text!r}.")
