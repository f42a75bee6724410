"""What the embedded stack consists of, and what each process is told."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.stack import embedded
from controlplane.stack.embedded import Stack, build, kept_secret, remember
from controlplane.stack.locks import StackError
from controlplane.stack.supervisor import Service
from tests.repository import ROOT

EVERYTHING = ["valkey", "migrate", "web", "worker", "beat", "upstream", "proxy-1", "proxy-2", "proxy-3"]


@pytest.fixture
def listening() -> Iterator[int]:
    """A port where somebody else's server listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def service(stack: Stack, name: str) -> Service:
    return next(service for service in stack.services if service.name == name)


def test_stack_without_settings_brings_its_own_store(tmp_path: Path) -> None:
    """Nothing has to be installed or named: a Valkey server is part of the stack, with its data below var/."""
    stack = build(ROOT, tmp_path, {})

    assert [part.name for part in stack.services] == EVERYTHING
    assert (tmp_path / "valkey" / "valkey.conf").is_file()
    assert service(stack, "web").environment["SLUICEGATE_REDIS_URL"] == stack.redis_url


@pytest.mark.parametrize("variable", ["SLUICEGATE_REDIS_URL", "REDIS_URL"])
def test_store_that_is_named_is_used(variable: str, tmp_path: Path) -> None:
    """With an address in the environment no store is started, and every process is told that address."""
    stack = build(ROOT, tmp_path, {variable: "redis://store.internal:6379/0"})

    assert [part.name for part in stack.services] == EVERYTHING[1:]
    assert {part.environment["SLUICEGATE_REDIS_URL"] for part in stack.services} == {"redis://store.internal:6379/0"}


def test_own_variable_comes_before_the_general_one(tmp_path: Path) -> None:
    """SLUICEGATE_REDIS_URL wins over REDIS_URL."""
    stack = build(ROOT, tmp_path, {"SLUICEGATE_REDIS_URL": "redis://ours:6379/0", "REDIS_URL": "redis://others:6379/0"})

    assert stack.redis_url == "redis://ours:6379/0"


def test_database_that_is_named_is_used(tmp_path: Path) -> None:
    """DATABASE_URL reaches the processes as it is."""
    stack = build(ROOT, tmp_path, {"DATABASE_URL": "postgres://db.internal/sluicegate"})

    assert service(stack, "migrate").environment["DATABASE_URL"] == "postgres://db.internal/sluicegate"


def test_web_listens_where_it_is_told(tmp_path: Path) -> None:
    """SLUICEGATE_PORT is the port of the admin and of REST."""
    port = embedded.free_port()

    assert build(ROOT, tmp_path, {"SLUICEGATE_PORT": str(port)}).web_url == f"http://127.0.0.1:{port}"


def test_taken_port_is_replaced(tmp_path: Path, listening: int) -> None:
    """A port that somebody else uses does not stop the stack; the address that is shown is the real one."""
    stack = build(ROOT, tmp_path, {"SLUICEGATE_PORT": str(listening)})

    assert stack.web_url != f"http://127.0.0.1:{listening}"
    assert stack.web_url.removeprefix("http://") in service(stack, "web").command


@pytest.mark.parametrize("text", ["http", "-1", "0", "65536", "80.5", "٣"])
def test_port_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """A wrong port is named in the error, not guessed at."""
    with pytest.raises(StackError, match="SLUICEGATE_PORT"):
        build(ROOT, tmp_path, {"SLUICEGATE_PORT": text})


def test_every_process_has_its_own_address(tmp_path: Path) -> None:
    """No two parts share a port."""
    stack = build(ROOT, tmp_path, {})
    addresses = [stack.web_url, stack.upstream_url, *stack.proxy_urls]

    assert len(set(addresses)) == 5


def test_stacks_that_start_together_share_no_port(tmp_path: Path) -> None:
    """Their servers bind seconds after the ports were chosen. A proxy would answer for another one's store."""
    first, second = (build(ROOT, tmp_path / name, {}) for name in ("first", "second"))
    addresses = [(stack.redis_url.rpartition("@")[2], stack.web_url, *stack.proxy_urls) for stack in (first, second)]

    assert set(addresses[0]).isdisjoint(addresses[1])


def test_proxies_have_names_and_an_upstream(tmp_path: Path) -> None:
    """Each proxy knows who it is and where requests go."""
    stack = build(ROOT, tmp_path, {})
    told = [service(stack, f"proxy-{number}").environment for number in (1, 2, 3)]

    assert [environment["SLUICEGATE_INSTANCE"] for environment in told] == ["proxy-1", "proxy-2", "proxy-3"]
    assert {environment["SLUICEGATE_UPSTREAM_URL"] for environment in told} == {stack.upstream_url}


def test_store_outlives_all_who_use_it(tmp_path: Path) -> None:
    """Whoever writes to the store is stopped before it."""
    stack = build(ROOT, tmp_path, {})
    users = [part for part in stack.services if part.name not in ("valkey", "upstream")]

    assert all("valkey" in part.after for part in users)


def test_secret_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    """Sessions survive a restart, and no other user of the machine can read the key."""
    path = tmp_path / "secret_key"

    first = kept_secret(path)

    assert kept_secret(path) == first
    assert len(first) >= 50
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_embedded_store_has_a_password_that_stays(tmp_path: Path) -> None:
    """A restart keeps the password, so that the address in somebody's shell stays valid."""
    passwords = {build(ROOT, tmp_path, {}).redis_url.rpartition("@")[0] for _ in range(2)}

    assert len(passwords) == 1
    assert len(passwords.pop()) > 40


def test_file_that_others_could_read_is_closed(tmp_path: Path) -> None:
    """An address with a password replaces one without, in a file that an older version left open."""
    (tmp_path / "redis_url").write_text("redis://127.0.0.1:6390/0\n")
    (tmp_path / "redis_url").chmod(0o644)

    remember(build(ROOT, tmp_path, {}), tmp_path)

    assert stat.S_IMODE((tmp_path / "redis_url").stat().st_mode) == 0o600


def test_secret_that_is_given_is_used(tmp_path: Path) -> None:
    """SECRET_KEY in the environment comes first, and none is made then."""
    stack = build(ROOT, tmp_path, {"SECRET_KEY": "given"})

    assert service(stack, "web").environment["SECRET_KEY"] == "given"
    assert not (tmp_path / "secret_key").exists()


def test_address_of_the_store_is_kept_from_others(tmp_path: Path) -> None:
    """Other commands of this checkout find the store; its address may hold a password."""
    remember(build(ROOT, tmp_path, {"REDIS_URL": "redis://:secret@store.internal:6379/0"}), tmp_path)

    assert (tmp_path / "redis_url").read_text() == "redis://:secret@store.internal:6379/0\n"
    assert stat.S_IMODE((tmp_path / "redis_url").stat().st_mode) == 0o600
