"""The processes of the whole platform on one machine, with their commands and environments."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import socket
import stat
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from controlplane.core.paths import BASE_DIR, IN_CHECKOUT
from controlplane.stack.locks import StackError
from controlplane.stack.supervisor import Service
from enforcement.embedded import ValkeyServer, free_port

WEB_PORT = 8000
UPSTREAM_PORT = 8100
FIRST_PROXY_PORT = 8101
VALKEY_PORT = 6390
PROXIES = 3
PRIVATE_DIRECTORY = 0o700
# The longest cursor, percent-encoded, has 3,000 bytes. By default gunicorn refuses a request line of 4,095.
GUNICORN = "gunicorn controlplane.wsgi --workers 2 --threads 4 --limit-request-line 8190 --no-control-socket"
CELERY = "celery --quiet -A controlplane.celery"


@dataclass(frozen=True)
class Stack:
    """The services to run, their addresses, and what holds their ports for them."""

    services: tuple[Service, ...]
    environment: Mapping[str, str]
    web_url: str
    redis_url: str
    upstream_url: str
    proxy_urls: tuple[str, ...]
    ports: Ports


def build(base: Path, var: Path, environ: Mapping[str, str]) -> Stack:
    """
    Take ports, and return the description of a stack with its code in *base* and its data in *var*.

    The store and the database that *environ* names (SLUICEGATE_REDIS_URL or REDIS_URL, DATABASE_URL) are used as they
    are. Without them, a Valkey server with a password and SQLite are used, with their data in *var*. A port that is in
    use is replaced by a free one.

    Raises:
        StackError: SLUICEGATE_PORT is not a port.
    """
    var.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    ports = Ports()
    store, redis_url = _store(var, environ, ports)
    environment = {
        **environ,
        "PYTHONUNBUFFERED": "1",
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        "SECRET_KEY": environ.get("SECRET_KEY") or kept_secret(var / "secret_key"),
        "SLUICEGATE_REDIS_URL": redis_url,
        # The processes run in the directory of the code, and an installed package looks for its data where it runs.
        "SLUICEGATE_VAR": str(var.absolute()),
    }
    web, upstream = ports.take(_wanted_port(environ)), ports.take(UPSTREAM_PORT)
    proxies = [ports.take(FIRST_PROXY_PORT + index) for index in range(PROXIES)]
    environment["SLUICEGATE_PROXY_URL"] = environ.get("SLUICEGATE_PROXY_URL") or _local(proxies[0])
    make = _Maker(base, environment, needs=("valkey",) if store else ())
    services = [*store, *make.control_plane(web, var), make.upstream(upstream)]
    services += [make.proxy(index, port, _local(upstream)) for index, port in enumerate(proxies, start=1)]
    return Stack(
        services=tuple(services),
        environment=environment,
        web_url=_local(web),
        redis_url=redis_url,
        upstream_url=_local(upstream),
        proxy_urls=tuple(map(_local, proxies)),
        ports=ports,
    )


def keep_private(var: Path) -> None:
    """
    Keep *var* from other users of the machine, now and for the rest of this process and its children.

    Whatever is in *var* already loses the rights of others: until version 0.2 every user could read it.
    """
    os.umask(0o077)
    var.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    _remove_rights_of_others(var)
    for path in var.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a process that a killed supervisor left may still delete files
            _remove_rights_of_others(path)


def remember(stack: Stack, var: Path) -> None:
    """Save the address of the store in a file that settings.py reads, so that other commands reach this stack."""
    _write_private(remembered(var), stack.redis_url + "\n")


def remembered(var: Path) -> Path:
    """Return the path of the file with the address of the store."""
    return var / "redis_url"


def management_command() -> str:
    """Return the beginning of the command line by which a person runs another management command."""
    if not IN_CHECKOUT:
        return "sluicegate-admin"
    parts = (sys.executable, str(BASE_DIR / "manage.py"))
    return shlex.join(min(part, os.path.relpath(part), key=len) for part in parts)


def kept_secret(path: Path) -> str:
    """Return the secret in the file *path*, which is created the first time for this user only."""
    if not path.exists():
        _write_private(path, secrets.token_urlsafe(50) + "\n")
    return path.read_text().strip()


def answers(url: str) -> Callable[[], bool]:
    """Return a function without arguments that returns whether *url* responds with success within a second."""

    def ask() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=1.0) as response:
                return bool(response.status < 300)
        except (OSError, urllib.error.URLError):
            return False

    return ask


class Ports:
    """
    The ports of a stack. Each is used once, and no other stack takes it while this object lives.

    A server binds its port seconds after it was taken. Until then, the port of UDP with the same number is held, which
    no server here uses. Otherwise the readiness checks of two stacks that start at the same time would be answered by
    the server of one.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def __del__(self) -> None:
        for held in self._held:
            held.close()

    def take(self, wanted: int) -> int:
        """Return the port *wanted* if it is free, else another free port."""
        port = wanted
        while not self._hold(port):
            port = free_port()
        return port

    def _hold(self, port: int) -> bool:
        held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            held.close()
            return False
        self._held.append(held)
        return _can_bind(port)


@dataclass(frozen=True)
class _Maker:
    base: Path
    environment: Mapping[str, str]
    needs: tuple[str, ...]

    def control_plane(self, port: int, var: Path) -> list[Service]:
        migrated = ("migrate", *self.needs)
        # A single worker need not look for other workers, which would take a second.
        alone = "--without-mingle --without-gossip"
        schedule = str(var / "celerybeat-schedule")
        return [
            self._service("migrate", "django migrate --no-input -v 0", after=self.needs, once=True),
            self._service(
                "web",
                f"{GUNICORN} --bind 127.0.0.1:{port}",
                after=migrated,
                ready=answers(f"{_local(port)}/healthz"),
            ),
            self._service("worker", f"{CELERY} worker --concurrency 2 {alone}", after=migrated),
            self._service("beat", f"{CELERY} beat --pidfile= --schedule", schedule, after=migrated),
        ]

    def upstream(self, port: int) -> Service:
        server = f"uvicorn --factory --host 127.0.0.1 --port {port} --no-access-log --log-level warning"
        ready = answers(f"{_local(port)}/healthz")
        return self._service("upstream", f"{server} controlplane.stack.upstream:create_app", ready=ready)

    def proxy(self, index: int, port: int, upstream_url: str) -> Service:
        return self._service(
            f"proxy-{index}",
            f"enforcement proxy --port {port}",
            after=("upstream", *self.needs),
            ready=answers(f"{_local(port)}/healthz"),
            extra={"SLUICEGATE_INSTANCE": f"proxy-{index}", "SLUICEGATE_UPSTREAM_URL": upstream_url},
        )

    def _service(
        self,
        name: str,
        module: str,
        *arguments: str,
        after: tuple[str, ...] = (),
        once: bool = False,
        ready: Callable[[], bool] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Service:
        return Service(
            name=name,
            command=(sys.executable, "-m", *module.split(), *arguments),
            environment={**self.environment, **(extra or {})},
            directory=self.base,
            ready=ready,
            after=after,
            once=once,
        )


def _store(var: Path, environ: Mapping[str, str], ports: Ports) -> tuple[list[Service], str]:
    given = environ.get("SLUICEGATE_REDIS_URL") or environ.get("REDIS_URL")
    if given:
        return [], given
    # Every user of the machine can connect to a loopback port.
    config = {"loglevel": "warning", "requirepass": kept_secret(var / "store_password")}
    server = ValkeyServer(var / "valkey", port=ports.take(VALKEY_PORT), config=config)
    command = server.prepare()
    return [Service("valkey", command, dict(environ), directory=server.directory, ready=server.answers)], server.url


def _wanted_port(environ: Mapping[str, str]) -> int:
    text = environ.get("SLUICEGATE_PORT") or str(WEB_PORT)
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 65536:
        raise StackError(f"SLUICEGATE_PORT: must be an integer from 1 to 65535, got {text!r}.")
    return int(text)


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        # The servers set this option too. A port that only waits for the end of old connections then counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _local(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _remove_rights_of_others(path: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISLNK(mode) and mode & 0o077:
        path.chmod(stat.S_IMODE(mode) & ~0o077)


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)  # an existing file keeps its mode otherwise
        file.write(text)
