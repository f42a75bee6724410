"""
Run what a page has in forks of one process that has imported everything: ``manage.py``, ``sluicegate`` and scripts.

Each imports for up to a second before it begins, and the pages of the documentation have dozens of them.
``make proof`` runs each in an interpreter of its own.
"""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Stands in place of manage.py. A command with settings of its own runs as it does for a reader.
CLIENT = """
import json, os, re, socket, sys

here = os.path.dirname(os.path.abspath(__file__))
given = {given!r}
if any(re.match({own!r}, name) for name, value in os.environ.items() if value != given.get(name)):
    os.execv(sys.executable, [sys.executable, os.path.join(here, "manage_alone.py"), *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.path.join(here, "ready"))
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    code = server.recv(1)
os._exit(code[0] if code else 1)
"""

# Stands in place of Python for the scripts of the pages. It needs no packages, and starts sooner without them.
PYTHON = """#!{python} -SI
exec(compile(open({client!r}).read(), {client!r}, "exec"), {{"__file__": {client!r}}})
"""

# Stands in place of ``sluicegate``. A server is ended by a signal to it, so it runs as it does for a reader.
COMMAND = """#!{python}
import os, sys

if sys.argv[1:2] in (["proxy"], ["serve"]):
    os.execv(sys.executable, [sys.executable, "-m", "enforcement", *sys.argv[1:]])
exec(compile(open({manage!r}).read(), {manage!r}, "exec"), {{"__file__": {manage!r}}})
"""
SCRIPTS = ".venv/bin/python_ready"


@contextmanager
def ready(checkout: Path, environment: Mapping[str, str], own: str) -> Iterator[None]:
    """
    Put the client in place of ``manage.py`` for the time of the block.

    Args:
        environment: What the process has, and the address of the store.
        own: A regular expression of variables. A command with another value of one has settings of its own.
    """
    manage, alone = checkout / "manage.py", checkout / "manage_alone.py"
    manage.rename(alone)
    manage.write_text(CLIENT.format(own=own, given=dict(environment)))
    command = checkout / ".venv" / "bin" / "sluicegate"
    command.unlink()
    command.write_text(COMMAND.format(python=sys.executable, manage=str(checkout / "sluicegate_ready.py")))
    command.chmod(0o755)
    (checkout / "sluicegate_ready.py").write_text(CLIENT.format(own="$^", given={}))
    python = checkout / SCRIPTS
    python.write_text(PYTHON.format(python=sys.executable, client=str(checkout / "sluicegate_ready.py")))
    python.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(checkout / "ready"))
        listening.listen(100)
        command = [sys.executable, __file__, str(listening.fileno())]
        process = subprocess.Popen(command, cwd=checkout, env=dict(environment), pass_fds=[listening.fileno()])
    try:
        yield
    finally:
        process.kill()
        process.wait()
        alone.replace(manage)


def serve(listening: socket.socket) -> None:
    """Import what a command of the control plane imports, and run each command in a fork."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "controlplane.settings"
    import django

    import enforcement.cli

    django.setup()
    import controlplane.urls  # noqa: F401
    import enforcement.aio
    import enforcement.testing

    for module in pkgutil.walk_packages(enforcement.cli.__path__, "enforcement.cli."):
        importlib.import_module(module.name)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork
    while True:
        asking, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(answer(asking))
        asking.close()


def answer(asking: socket.socket) -> int:
    """Run a command with the arguments, folder, environment and descriptors of a client, and send its exit code."""
    _, descriptors, _, _ = socket.recv_fds(asking, 1, 3)
    with asking.makefile("rb") as rest:
        sys.argv, folder, environment = json.load(rest)
    for present, wanted in enumerate(descriptors):
        os.dup2(wanted, present)
    # Streams remember whether they can be sought.
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "w" if number else "r", 1, closefd=False) for number in range(3)
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = run()
    sys.stdout.flush()
    asking.send(bytes([code]))
    return code


def run() -> int:
    """Run the command as an interpreter does, and return its exit code."""
    from controlplane.__main__ import main as manage
    from enforcement.cli import main as sluicegate

    try:
        if sys.argv[0].endswith(SCRIPTS):
            del sys.argv[0]
            sys.path[0] = os.getcwd()
            runpy.run_path(sys.argv[0], run_name="__main__")
            threading._shutdown()  # type: ignore[attr-defined]
            return 0
        return manage() or 0 if sys.argv[0].endswith(".py") else sluicegate()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001  (an interpreter prints it and ends, whatever it is)
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
