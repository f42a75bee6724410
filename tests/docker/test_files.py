"""The files in docker/, read by the tools that know their formats, and held to what production needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.docker.compose import COMPOSE_FILE, MissingVariable, load, read_dockerfile
from tests.repository import ROOT
from tests.requires import require
from tests.test_arrows import imported

DOCKERFILES = [ROOT / "docker" / "Dockerfile", ROOT / "docker" / "Dockerfile.proxy"]
SECRETS = {
    "SECRET_KEY": "0123456789abcdef" * 4,
    "POSTGRES_PASSWORD": "postgres-password",
    "PUBLISHER_PASSWORD": "password-of-publisher",
    "WORKER_PASSWORD": "password-of-worker",
    "ENFORCER_PASSWORD": "password-of-enforcer",
}
PROXY = [
    f"enforcement/doors/proxy/{path.name}"
    for path in (ROOT / "enforcement" / "doors" / "proxy").glob("*.py")
    if path.name != "websocket.py"  # the extra 'websocket' brings what it needs
]
REMOTE = {"httpx2", "rich", "typer", "yaml"}
# The demo and the commands for a control plane run on a machine with the extra 'cli'. A command imports its server when
# it is called, and an answer in an encoding imports its decoder, or is settled by its estimate.
# Whoever exports Parquet installs the extra for it.
ELSEWHERE = {
    "demo": {"httpx2"},
    "cli": {"h2corn", "httptools", "uvicorn"},
    "parquet": {"pyarrow"},
    "remote": REMOTE,
    "streams": {"brotli", "backports"},
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load(SECRETS)


def built(compose: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, service) for name, service in compose["services"].items() if "build" in service)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile_passes_hadolint(path: Path) -> None:
    """hadolint has nothing to say, not even about style."""
    beside_python = str(Path(sys.executable).parent)
    hadolint = require(
        shutil.which("hadolint", path=beside_python) or shutil.which("hadolint"),
        "hadolint is missing: it is part of the group 'dev' ('make install').",
    )

    said = subprocess.run([hadolint, "--failure-threshold", "style", path], capture_output=True, text=True, check=False)

    assert (said.stdout, said.returncode) == ("", 0)


def test_compose_file_follows_the_specification(compose: dict[str, Any]) -> None:
    """A strict reader of the compose specification accepts it: no unknown key, no wrong form."""
    assert set(PyCompose.from_yaml(yaml.safe_dump(compose)).service_names()) == set(compose["services"])


def test_unknown_key_would_be_noticed(compose: dict[str, Any]) -> None:
    """The reader is strict: a misspelled key is refused."""
    web = {**compose["services"]["web"], "comand": ["true"]}

    with pytest.raises(ValueError, match="comand"):
        PyCompose.from_yaml(yaml.safe_dump({**compose, "services": {**compose["services"], "web": web}}))


def test_platform_is_complete(compose: dict[str, Any]) -> None:
    """Store, database, the three roles of the control plane, three proxies and something behind them."""
    stores, prepared = {"valkey", "postgres"}, {"accounts", "migrate"}
    proxies = {"proxy-1", "proxy-2", "proxy-3", "upstream"}

    assert set(compose["services"]) == stores | prepared | {"web", "worker", "beat"} | proxies


def test_proxies_differ_in_name_and_port_alone() -> None:
    """One of them is started in every run of the tests."""
    services = load(SECRETS)["services"]
    proxies = {name: services[name] for name in ("proxy-1", "proxy-2", "proxy-3")}
    told = {name: proxy["environment"].pop("SLUICEGATE_INSTANCE") for name, proxy in proxies.items()}
    ports = [proxy.pop("ports") for proxy in proxies.values()]

    assert told == {name: name for name in proxies}
    assert ports == [[f"127.0.0.1:810{n}:8080", f"127.0.0.1:910{n}:9464"] for n in (1, 2, 3)]
    assert proxies["proxy-1"] == proxies["proxy-2"] == proxies["proxy-3"]


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_secret_without_a_value_stops_everything(name: str) -> None:
    """No secret has a default."""
    others = {key: value for key, value in SECRETS.items() if key != name}

    with pytest.raises(MissingVariable, match=name):
        load(others)


def test_no_secret_is_written_down() -> None:
    """Each secret appears as a required variable only."""
    written = [line for line in COMPOSE_FILE.read_text().splitlines() if "PASSWORD:" in line or "SECRET_KEY:" in line]

    assert written
    assert [line for line in written if ":?" not in line] == []


def test_what_is_waited_for_is_there(compose: dict[str, Any]) -> None:
    """Every dependency is a service, and one that is waited for until healthy has a health check."""
    services = compose["services"]
    stages = {name: stage for path in DOCKERFILES for name, stage in read_dockerfile(path).items()}
    needed = [
        (name, condition["condition"])
        for service in services.values()
        for name, condition in service.get("depends_on", {}).items()
    ]

    unchecked = [
        name
        for name, condition in needed
        if condition == "service_healthy"
        and "healthcheck" not in services[name]
        and not stages[services[name]["build"].get("target", "")].health
    ]

    assert needed
    assert unchecked == []


def test_every_image_may_be_given_by_its_digest() -> None:
    """A tag may name another image tomorrow. None is pinned here, because that would leave out security updates."""
    digest = f"@sha256:{'0' * 64}"
    names = ("VALKEY_IMAGE", "POSTGRES_IMAGE", "PYTHON_IMAGE")
    services = load({**SECRETS, **{name: f"{name.lower()}{digest}" for name in names}})["services"]

    pulled = {service["image"] for service in services.values() if "build" not in service}
    built = {service["build"]["args"]["PYTHON"] for service in services.values() if "build" in service}
    bases = {line.split()[1] for path in DOCKERFILES for line in path.read_text().splitlines() if line[:5] == "FROM "}
    assert {image for image in pulled if not image.startswith("sluicegate")} == {
        f"valkey_image{digest}",
        f"postgres_image{digest}",
    }
    assert built == {f"python_image{digest}"}
    assert bases == {"$PYTHON", "base"}


def test_named_volumes_are_declared(compose: dict[str, Any]) -> None:
    """Each volume that a service mounts by name exists, and the store's and the database's outlive their containers."""
    services = compose["services"].values()
    mounted = {volume.split(":")[0] for service in services for volume in service.get("volumes", [])}

    assert {name for name in mounted if not name.startswith(".")} == set(compose["volumes"])


def test_no_container_runs_as_root(compose: dict[str, Any]) -> None:
    """Each service names an ordinary user, or its image does, by number."""
    users = {name: service.get("user") for name, service in compose["services"].items() if "build" not in service}
    stages = [stage for path in DOCKERFILES for name, stage in read_dockerfile(path).items() if name != "packages"]

    assert users == {"valkey": "valkey", "postgres": "postgres"}
    assert {stage.user for stage in stages} == {"10001"}


def test_every_container_is_hardened(compose: dict[str, Any]) -> None:
    """Read-only files, no capabilities, no way to gain new privileges."""
    hardened = [
        name
        for name, service in compose["services"].items()
        if service["read_only"]
        and service["cap_drop"] == ["ALL"]
        and service["security_opt"] == ["no-new-privileges:true"]
    ]

    assert hardened == list(compose["services"])


def test_ports_are_open_on_loopback_only(compose: dict[str, Any]) -> None:
    """What is published to other hosts is the operator's decision; store and database are not published at all."""
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}

    assert published == {
        "web": ["127.0.0.1:8000:8000"],
        "proxy-1": ["127.0.0.1:8101:8080", "127.0.0.1:9101:9464"],
        "proxy-2": ["127.0.0.1:8102:8080", "127.0.0.1:9102:9464"],
        "proxy-3": ["127.0.0.1:8103:8080", "127.0.0.1:9103:9464"],
    }


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_image_is_built_from_what_the_context_lets_through(path: Path) -> None:
    """Every file that a Dockerfile copies is in the repository, and its .dockerignore does not hold it back."""
    ignored = path.with_name(f"{path.name}.dockerignore").read_text().split()
    copied = {source for stage in read_dockerfile(path).values() for source, _ in stage.copies}

    held_back = {source for source in copied if f"!{source.split('/')[0]}" not in ignored}

    assert all((ROOT / source).exists() for source in copied)
    assert held_back == set()


@pytest.mark.parametrize(
    ("requirements", "folders"),
    [("controlplane.txt", ["controlplane", "enforcement"]), ("proxy.txt", PROXY)],
)
def test_image_installs_what_its_code_imports(requirements: str, folders: list[str]) -> None:
    """A package that the tests have and the image has not would be missed in production only."""
    lines = (ROOT / "docker" / "requirements" / requirements).read_text().splitlines()
    installed = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    providers = metadata.packages_distributions()

    missing = {
        (str(path.relative_to(ROOT)), name)
        for path in python_files(folders)
        for name in imported(path)
        if name in providers
        and name not in ELSEWHERE.get(path.parent.name, ELSEWHERE.get(path.stem, ()))
        and name not in sys.stdlib_module_names
        and not {provider.lower().replace("_", "-") for provider in providers[name]} & (installed | {"sluicegate"})
    }

    assert missing == set()


def python_files(folders: list[str]) -> list[Path]:
    """Leave out what only those import who install the extra for it; the proxy's own file is named by itself."""
    optional = {ROOT / "enforcement" / folder for folder in ("doors", "exporters", "testing")}
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if not optional & set(path.parents)]
    return found + [ROOT / name for name in folders if name.endswith(".py")]
