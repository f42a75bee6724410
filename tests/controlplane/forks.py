"""
Processes of the control plane, forked from one that has imported everything.

``make proof`` starts interpreters, as do the tests of what a person starts.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import IO, Any

from tests.forks import Fork, next_order
from tests.repository import ROOT
from tests.scale import scale

IMPORTED = (
    "controlplane.urls celery.bin.celery celery.apps.worker celery.apps.beat celery.concurrency.prefork "
    "celery.fixups.django kombu.transport.redis gunicorn.app.wsgiapp gunicorn.workers.gthread uvicorn.main "
    "uvicorn.protocols.http.httptools_impl uvicorn.protocols.websockets.wsproto_impl "
    "controlplane.stack.upstream enforcement.cli.proxy enforcement.doors.proxy httptools h2corn"
)
Process = Fork | subprocess.Popen[bytes]
TEMPLATE = "tests.controlplane.forks"
MANAGE = f"from {TEMPLATE} import manage; manage()"


def start(arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None) -> Process:
    """Start what would follow ``python``, in this repository, with exactly these variables."""
    streams = [output.fileno()] * 2 if output else [1, 2]
    return _start(arguments, arguments, environment, ROOT, streams)


def start_manage(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str], *streams: int, given: int | None = None
) -> Process:
    """
    Start a command of ``manage.py`` in a folder. Of a fork, Python processes that it starts are forks too.

    Args:
        folder: A checkout. A fork takes only ``var/`` from it.
        streams: What it writes to: output, and errors if they differ.
        given: What it reads.
    """
    own = {"SLUICEGATE_VAR": str(folder / "var"), **environment} if scale(True, False) else environment
    forked, alone = ["-c", MANAGE, *arguments], [str(folder / "manage.py"), *arguments]
    return _start(forked, alone, own, folder, [streams[0], streams[-1]], given)


def run_manage(folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> CompletedProcess[str]:
    """Run a command of ``manage.py`` in a folder to its end."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        status = start_manage(folder, arguments, environment, output.fileno(), errors.fileno()).wait(300)
        output.seek(0)
        errors.seek(0)
        return CompletedProcess(arguments, status, output.read(), errors.read())


def _start(
    forked: Sequence[str],
    alone: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    outputs: Sequence[int],
    given: int | None = None,
) -> Process:
    with open(os.devnull) as nothing:
        descriptors = [nothing.fileno() if given is None else given, *outputs]
        if scale(True, False):
            order = {"arguments": list(forked), "environment": dict(environment), "cwd": str(folder)}
            return Fork(TEMPLATE, order, descriptors)
        read, written, errors = descriptors
        command = [sys.executable, *alone]
        streams = {"stdin": read, "stdout": written, "stderr": errors}
        return subprocess.Popen(command, env=environment, cwd=folder, **streams, start_new_session=True)


def wait_until_stopped(process: Process) -> None:
    """Wait until a process has suspended itself. It may be a child of another process than this one."""
    deadline = time.monotonic() + 60
    while (state := Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0]) != "T":
        assert state not in "ZX"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def prepare() -> None:
    """Import what processes of the control plane import."""
    import django

    django.setup()
    for name in IMPORTED.split():
        importlib.import_module(name)


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
    of_settings = (sys.modules[f"controlplane.{name}"] for name in ("core.paths", "settings"))
    for module in dict.fromkeys((*of_settings, chosen)):
        importlib.reload(module)
    for name in filter(str.isupper, vars(chosen)):
        setattr(settings, name, getattr(chosen, name))
    vars(connections).pop("settings", None)
    connections.__init__()  # type: ignore[misc]


def manage() -> None:
    """Run a command of ``manage.py`` in a fork; Python processes that it starts are forks of it."""
    from controlplane.__main__ import main

    start = asyncio.create_subprocess_exec

    async def start_fork(program: str, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        if program == sys.executable:
            # It never returns, so that nothing else is executed.
            options["preexec_fn"] = partial(become, arguments, options["env"])
        return await start(program, *arguments, **options)

    vars(asyncio)["create_subprocess_exec"] = start_fork
    main()


if __name__ == "__main__":
    prepare()
    order = next_order()
    become(order["arguments"], order["environment"])
