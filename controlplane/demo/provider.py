"""The fake provider of models in the demo's stack, and what it has invoiced."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from controlplane.stack.embedded import Stack
from controlplane.stack.supervisor import Service
from enforcement.embedded import free_port

NAME = "provider"
INVOICE = "invoice.jsonl"
UPSTREAMS = "upstreams.toml"
# Decides with the id of a request how long its answer is, so that every demo gets the same answers.
SEED = "demo"
CLASSES = ("input", "cached_input", "cache_write", "output")


@dataclass(frozen=True, slots=True)
class Invoice:
    """The number of requests that the provider has answered, and their price in micros."""

    requests: int
    micros: int


def with_provider(stack: Stack, base: Path, directory: Path) -> Stack:
    """
    Return the stack with a fake provider, to which its proxies forward every path below ``/v1``.

    Args:
        base: The directory of the code.
        directory: For the invoice of the provider.
    """
    port = free_port()
    upstreams = directory.absolute() / UPSTREAMS
    upstreams.write_text(
        f'["/"]\nurl = "{stack.upstream_url}"\n\n["/v1"]\nurl = "http://127.0.0.1:{port}/v1"\n', encoding="utf-8"
    )
    services = [_forwarding(service, upstreams) for service in stack.services]
    return replace(stack, services=(*services, _provider(stack, base, directory.absolute(), port)))


def read_invoice(directory: Path, prices: Mapping[str, int]) -> Invoice:
    """Return what the provider charges at *prices*, micros for a million tokens of each class."""
    path = directory / INVOICE
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return Invoice(len(rows), sum(_price(row, prices) for row in rows))


def _price(row: Mapping[str, int], prices: Mapping[str, int]) -> int:
    return -(-sum(row[name] * prices.get(name, prices["input"]) for name in CLASSES) // 1_000_000)


def _forwarding(service: Service, upstreams: Path) -> Service:
    """Return a proxy that forwards to the upstreams of this file, or another service as it is."""
    environment = dict(service.environment)
    if environment.pop("SLUICEGATE_UPSTREAM_URL", None) is None:
        return service
    environment["SLUICEGATE_UPSTREAMS_FILE"] = str(upstreams)
    return replace(service, environment=environment, after=(*service.after, NAME))


def _provider(stack: Stack, base: Path, directory: Path, port: int) -> Service:
    module = "enforcement.proof.metering.provider"
    return Service(
        name=NAME,
        command=(sys.executable, "-m", module, str(directory / INVOICE), SEED, "--port", str(port), "--behaves"),
        environment=stack.environment,
        directory=base,
        ready=lambda: _listens(port),
    )


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False
