"""Real proxies with the configuration that the repository ships, each of them also without asking the service."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.doors.servers import Server, server
from enforcement.embedded import free_port
from tests.apart import program, python_of
from tests.proxies.running import APPLICATION, CONFIGURATIONS, LISTENS, SERVICE, installed

PLAIN = ""
"""In place of the name of a configuration: without a filter."""
ENVOY, NGINX, GRPC, LITELLM = "Envoy", "nginx", "grpcio", "LiteLLM"
_ADMIN = 9901
_FIND: dict[str, Callable[[], Path | str]] = {
    NGINX: lambda: installed("nginx", "nginx"),
    ENVOY: lambda: program("envoy", "envoy"),
    GRPC: lambda: python_of("protobuf"),
    LITELLM: lambda: python_of("litellm"),
}


def found(name: str) -> str | None:
    """Return the path of a program that some figures need, or None if this machine cannot have it."""
    try:
        return str(_FIND[name]())
    except (pytest.skip.Exception, pytest.fail.Exception):
        return None


@contextmanager
def nginx(path: str, *, service: int, application: int, asks: bool = True) -> Iterator[Server]:
    """Run nginx with one worker while the block runs. *asks*: by ``auth_request``."""
    text = (CONFIGURATIONS / "nginx" / "nginx.conf").read_text()
    # The generator does not connect again after 1,000 requests.
    changes = {"worker_processes auto": "worker_processes 1", "access_log off;": "keepalive_requests 1000000;"}
    for committed, used in (changes if asks else {**changes, "auth_request /_sluicegate;": ""}).items():
        assert committed in text
        text = text.replace(committed, f"access_log off; {used}" if "log" in committed else used)
    ports = {LISTENS: free_port(), SERVICE: service, APPLICATION: application}
    for committed, used in ports.items():
        text = text.replace(f":{committed}", f":{used}")
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-nginx-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx gives up root's rights
        (folder / "nginx.conf").write_text(text)
        command = [path, "-p", name, "-c", "nginx.conf", "-g", "daemon off;"]
        with server(command, ports[LISTENS], folder=folder) as running:
            yield running


@contextmanager
def envoy(path: str, configuration: str, *, service: int, application: int) -> Iterator[Server]:
    """Run Envoy with one worker while the block runs, by the name of a configuration or ``PLAIN``."""
    text = (CONFIGURATIONS / "envoy" / f"{configuration or 'rls'}.yaml").read_text()
    ports = {LISTENS: free_port(), SERVICE: service, APPLICATION: application, _ADMIN: free_port()}
    for committed, used in ports.items():
        assert f"port_value: {committed}" in text
        text = text.replace(f"port_value: {committed}", f"port_value: {used}")
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-envoy-") as name:
        file = Path(name) / "envoy.yaml"
        file.write_text(text if configuration else _without_filter(text))
        # Without --disable-hot-restart only one Envoy can run at a time.
        command = [path, "-c", str(file), "--disable-hot-restart", "--concurrency", "1"]
        with server(command, ports[LISTENS]) as running:
            yield running


def _without_filter(text: str) -> str:
    document: dict[str, Any] = yaml.safe_load(text)
    (listener,) = document["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = [it for it in manager["http_filters"] if it["name"].endswith(".router")]
    return yaml.safe_dump(document)
