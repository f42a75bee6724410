"""
Python processes for tests that need many, forked from one process that has imported the library.

An interpreter that starts and imports takes half a second of a core, a fork some milliseconds. The fork runs its
module or code as ``__main__`` and ends as any process does. Tests of what a person starts start it themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
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
from typing import Any

from tests.repository import ROOT

HEARTBEAT_SECONDS = 0.2
"""Of the processes: those that wait for their fleet hear of each other at a heartbeat."""


class Forked:
    """
    A process with pipes, with those parts of ``subprocess.Popen`` that tests use.

    Args:
        arguments: What would follow ``python``: ``-m MODULE ...`` or ``-c CODE ...``.
        env: Its whole environment. None: that of this process.
    """

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        self._template = _template()
        order = {"arguments": list(arguments), "env": dict(os.environ if env is None else env)}
        self.pid = self._template.ask(order, [theirs_in, theirs_out])
        # Until the template is asked for its status, nobody else gets its number.
        self._handle = os.pidfd_open(self.pid)
        os.close(theirs_in)
        os.close(theirs_out)
        self.stdin, self.stdout = os.fdopen(ours_in, "w"), os.fdopen(ours_out)
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
        for stream in (self.stdin, self.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.wait()


class _Template:
    """The process that forks, as seen from the tests."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, "-m", "tests.enforcement.forks", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL)
        atexit.register(self._end)

    def ask(self, order: dict[str, Any], descriptors: Sequence[int] = ()) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(order).encode()], descriptors)
            return int(self._socket.recv(100))

    def _end(self) -> None:
        self._socket.close()
        self._process.wait(10)


@cache
def _template() -> _Template:
    return _Template()


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each order; return the order in the forked process, and None in the first one at the end."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, 1_000_000, 2)
        if not data:
            return None
        order = json.loads(data)
        if "wait" in order:
            said = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            said = os.fork()
            if not said:
                for number, descriptor in enumerate(descriptors):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                return order
            for descriptor in descriptors:
                os.close(descriptor)
        connection.send(str(said).encode())


def main() -> None:
    from enforcement import Limiter, aio  # noqa: F401
    from enforcement.engine import agent
    from enforcement.proof import command, workload  # noqa: F401

    vars(agent)["HEARTBEAT_SECONDS"] = HEARTBEAT_SECONDS
    gc.freeze()  # so that a collection in a fork copies no page of what was imported
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        order = _serve(connection)
    if order is None:
        return
    os.environ.clear()
    os.environ.update(order["env"])
    how, what, *rest = order["arguments"]
    sys.argv = [how, *rest]
    if how == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
