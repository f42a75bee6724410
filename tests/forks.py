"""
Python processes for tests that need many, forked from one process that has imported what they import.

An interpreter that starts and imports the library takes half a second of a core, one with the control plane takes more
than a second, and a fork takes some milliseconds. It runs its module or code as ``__main__`` and ends as any process
does. Tests of what a person starts start it themselves, and ``make proof`` starts interpreters.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from tests.repository import ROOT
from tests.scale import scale

IMPORTED = (
    "enforcement.aio enforcement.cli.serve enforcement.cli.proxy enforcement.doors.proxy enforcement.proof.command "
    "enforcement.proof.workload enforcement.service.app h2corn httptools uvicorn.protocols.websockets.wsproto_impl"
)
HEARTBEAT_SECONDS = 0.2
"""Of processes with pipes: those that wait for their fleet hear of each other at a heartbeat."""


class Fork:
    """
    A process in a session of its own, with those parts of ``subprocess.Popen`` that tests use.

    Args:
        template: The module whose process forks. It takes orders by ``next_order()``.
        order: What the module asks for, and maybe ``cwd``, the folder of the process.
        descriptors: What become its input, output and errors, as far as they are given.
    """

    def __init__(self, template: str, order: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        self._template = _template(template)
        self.pid = self._template.ask(order, descriptors)
        # Until the template is asked for its status, nobody else gets its number.
        self._handle = os.pidfd_open(self.pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended, and return its exit status."""
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._handle, select.POLLIN)
            if not poll.poll(None if timeout is None else 1_000 * timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = self._template.ask({"wait": self.pid})
            os.close(self._handle)
        return self.returncode

    def kill(self) -> None:
        """Kill the process unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Tell the process to end."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._handle, number)


class Forked(Fork):
    """
    A process of the library.

    Args:
        arguments: What would follow ``python``: ``-m MODULE ...`` or ``-c CODE ...``.
        env: Its whole environment. None: that of this process.
        output: A file to which it adds what it writes, errors too. None: its input and output are pipes, and it hears
            of its fleet soon.
    """

    stdin: IO[str]
    stdout: IO[str]

    def __init__(
        self, arguments: Sequence[str], env: Mapping[str, str] | None = None, output: Path | str | None = None
    ) -> None:
        self._streams: tuple[IO[str], ...] = ()
        environment = dict(os.environ if env is None else env)
        order = {"arguments": list(arguments), "env": environment, "is_quick": output is None}
        if output is None:
            (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
            theirs = [theirs_in, theirs_out]
            self._streams = self.stdin, self.stdout = os.fdopen(ours_in, "w"), os.fdopen(ours_out)
        else:
            written = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            theirs = [os.open(os.devnull, os.O_RDONLY), written, os.dup(written)]
        super().__init__("tests.forks", order, theirs)
        for descriptor in theirs:
            os.close(descriptor)

    def communicate(self, text: str = "", timeout: float | None = None) -> tuple[str, None]:
        """Write a text, read all, and wait for the end."""
        with contextlib.suppress(BrokenPipeError), self.stdin:
            self.stdin.write(text)
        output = self.stdout.read()
        self.wait(timeout)
        return output, None

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in self._streams:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.wait()


def sluicegate(
    arguments: Sequence[str], env: Mapping[str, str], output: Path | str = os.devnull
) -> Forked | subprocess.Popen[bytes]:
    """Start a command with exactly these variables, in a session of its own. What it writes is added to a file."""
    command = ["-m", "enforcement", *arguments]
    if scale(True, False) and "--workers" not in arguments:  # workers are interpreters anyway
        return Forked(command, env, output)
    with open(output, "ab") as file:
        return subprocess.Popen([sys.executable, *command], env=env, stdout=file, stderr=file, start_new_session=True)


class _Template:
    """The process that forks, as seen from the tests."""

    def __init__(self, module: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                env={**os.environ, "DJANGO_SETTINGS_MODULE": "controlplane.settings", "PYTHONUNBUFFERED": "1"},
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self._end)

    def ask(self, order: Mapping[str, Any], descriptors: Sequence[int] = ()) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(order).encode()], descriptors)
            return int(self._socket.recv(100))

    def _end(self) -> None:
        self._socket.close()
        self._process.wait(10)


_template = cache(_Template)


def next_order() -> dict[str, Any]:
    """Fork for each order, and return it in the fork. The first process ends when nobody orders any more."""
    gc.freeze()  # so that a collection in a fork copies no page of what was imported
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        while True:
            data, descriptors, _, _ = socket.recv_fds(connection, 1_000_000, 3)
            if not data:
                sys.exit()
            order = json.loads(data)
            if "wait" in order:
                said = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
            elif not (said := os.fork()):
                for number, descriptor in enumerate(descriptors):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                os.setsid()
                os.chdir(order.get("cwd", "."))
                return order
            for descriptor in descriptors:
                os.close(descriptor)
            connection.send(str(said).encode())


def main() -> None:
    for name in IMPORTED.split():
        importlib.import_module(name)
    order = next_order()
    os.environ.clear()
    os.environ.update(order["env"])
    if order["is_quick"]:
        from enforcement.engine import agent

        vars(agent)["HEARTBEAT_SECONDS"] = HEARTBEAT_SECONDS
    # Tests bound what a decision may take, and this host is busy with other tests.
    from enforcement.store import connection

    vars(connection)["MOST_LAG_SECONDS"] = 0.0
    how, what, *rest = order["arguments"]
    sys.argv = [how, *rest]
    if how == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
