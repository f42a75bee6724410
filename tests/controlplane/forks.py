"""
Processes of the control plane, forked from one that has imported everything.

An interpreter that imports the control plane takes more than a second of the processor, and tests start a hundred of
them. ``make proof`` starts interpreters, as do the tests of what a person starts.
"""

from __future__ import annotations

import asyncio
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
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

from tests.repository import ROOT
from tests.scale import scale

IMPORTED = (
    "controlplane.urls celery.bin.celery celery.apps.worker celery.apps.beat celery.concurrency.prefork "
    "celery.fixups.django kombu.transport.redis gunicorn.app.wsgiapp gunicorn.workers.gthread uvicorn.main "
    "uvicorn.protocols.http.httptools_impl uvicorn.protocols.websockets.wsproto_impl "
    "controlplane.stack.upstream enforcement.cli.proxy enforcement.doors.proxy httptools h2corn"
)


class Forked:
    """A process in a session of its own, with those parts of ``subprocess.Popen`` that tests use."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], outputs: Sequence[int]) -> None:
        self._template = _template()
        self.pid = self._template.ask({"arguments": list(arguments), "environment": dict(environment)}, outputs)
        # Until the template is asked for its status, nobody else gets its number.
        self._handle = os.pidfd_open(self.pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._handle, select.POLLIN)
            if not poll.poll(None if timeout is None else 1_000 * timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = self._template.ask({"wait": self.pid})
            os.close(self._handle)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


Process = Forked | subprocess.Popen[bytes]


def start(arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None) -> Process:
    """Start what would follow ``python``, in this repository, with exactly these variables."""
    if scale(True, False):
        return Forked(arguments, environment, [output.fileno()] * 2 if output else [1, 2])
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=dict(environment),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def wait_until_stopped(process: Process) -> None:
    """Wait until a process has suspended itself. It may be a child of another process than this one."""
    deadline = time.monotonic() + 60
    while (state := Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0]) != "T":
        assert state not in "ZX"
        assert time.monotonic() < deadline
        time.sleep(0.005)


class _Template:
    """The process that forks, as seen from the tests."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, "-m", "tests.controlplane.forks", str(theirs.fileno())]
            environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "controlplane.settings", "PYTHONUNBUFFERED": "1"}
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL
            )
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


def serve(connection: socket.socket) -> None:
    """Fork for each order."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, 1_000_000, 2)
        if not data:
            return
        order = json.loads(data)
        if "wait" in order:
            said = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            said = os.fork()
            if not said:
                os.setsid()
                for number, descriptor in enumerate(descriptors, start=1):
                    os.dup2(descriptor, number)
                become(order["arguments"], order["environment"])
            for descriptor in descriptors:
                os.close(descriptor)
        connection.send(str(said).encode())


def prepare() -> None:
    """Import what processes of the control plane import."""
    import django

    django.setup()
    for name in IMPORTED.split():
        importlib.import_module(name)
    gc.freeze()  # so that a collection in a fork copies no page of what was imported


def become(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Do in a fork what ``python`` does with these arguments and variables, and end."""
    code = 1
    try:
        _forget(environment)
        how, what, *rest = arguments
        if how == "-c":
            sys.argv = [how, *rest]
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [what, *rest]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  (an interpreter prints it and ends, whatever it is)
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _forget(environment: Mapping[str, str]) -> None:
    """Leave behind what belongs to the process that forked, its settings included."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and not os.get_inheritable(int(name)):
                os.close(int(name))
    asyncio._set_running_loop(None)
    signal.set_wakeup_fd(-1)
    atexit._clear()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    from django.conf import settings
    from django.db import connections

    chosen = importlib.import_module(environment.get("DJANGO_SETTINGS_MODULE", "controlplane.settings"))
    for module in dict.fromkeys((sys.modules["controlplane.settings"], chosen)):
        importlib.reload(module)
    for name in filter(str.isupper, vars(chosen)):
        setattr(settings, name, getattr(chosen, name))
    vars(connections).pop("settings", None)
    connections.__init__()  # type: ignore[misc]


def manage() -> None:
    """Run a command of ``manage.py`` in the present directory; Python processes that it starts are forks of it."""
    from controlplane.__main__ import main

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    prepare()
    start = asyncio.create_subprocess_exec

    async def start_fork(program: str, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        if program == sys.executable:
            # It never returns, so that nothing else is executed.
            options["preexec_fn"] = partial(become, arguments, options["env"])
        return await start(program, *arguments, **options)

    vars(asyncio)["create_subprocess_exec"] = start_fork
    main()


def managing(folder: Path) -> list[str]:
    """Return the command line of ``manage.py`` in a folder."""
    code = f"import sys; sys.path.insert(1, {str(ROOT)!r}); from tests.controlplane.forks import manage; manage()"
    return scale([sys.executable, "-c", code], [sys.executable, str(folder / "manage.py")])


if __name__ == "__main__":
    prepare()
    serve(socket.socket(fileno=int(sys.argv[1])))
