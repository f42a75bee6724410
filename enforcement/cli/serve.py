"""The command ``sluicegate serve``. It runs the decision service, which other proxies ask about each request."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from math import ceil
from typing import Final

from enforcement.cli import servers
from enforcement.cli.draining import run_draining
from enforcement.cli.options import new_parser
from enforcement.http.asgi import App
from enforcement.service.app import create_app
from enforcement.service.settings import MOST_DEADLINE_MS, limiter_settings

LEAST_STOP_SECONDS: Final = 5
"""How long calls may go on at least once the service is told to stop. A call of gRPC may still be arriving."""

_EPILOG: Final = """\
The store, the trusted proxies and everything else are set by environment variables; the page "Decision service" of the
documentation lists them.

exit status:
  0  it was stopped
  2  an option or variable is wrong, or the server is not installed
"""

_METRICS: Final = "_SLUICEGATE_SERVICE_METRICS"
"""Host, port and number of processes, for the workers."""

logger = logging.getLogger("sluicegate.service")

_MOST_DRAIN_SECONDS: Final = 300


def main(arguments: Sequence[str]) -> int:
    """Run the service until it is stopped, and return the exit status."""
    options = _parser().parse_args(arguments)
    if options.deadline is not None:
        os.environ["SLUICEGATE_DEADLINE_MS"] = str(options.deadline)
    try:
        create_app()  # does no I/O, and tells at once what is wrong
        limiter = limiter_settings()
        if options.metrics_port is not None:
            if options.metrics_port in (options.port, options.http1_port):
                raise ValueError(f"--metrics-port: must differ from the other ports, got {options.metrics_port}")
            servers.check_address("--metrics-port", options.host, options.metrics_port)
    except ValueError as exc:
        print(f"sluicegate serve: {exc}", file=sys.stderr)
        return servers.REFUSED
    if options.drain:
        return run_draining(["serve", *arguments, "--drain", "0"], options.drain)
    os.environ.pop(_METRICS, None)
    if options.metrics_port is not None:
        os.environ[_METRICS] = f"{options.host} {options.metrics_port} {options.workers}"
    grace = max(LEAST_STOP_SECONDS, ceil(limiter.lookup_seconds + limiter.timeout))
    return servers.serve("serve", "enforcement.cli.serve:create_monitored", options, grace=grace)


def create_monitored() -> App:
    """Return the service as an ASGI application, with a server for metrics beside it if there is a port for that."""
    service = create_app()
    host, _, ports = os.environ.get(_METRICS, "").partition(" ")
    if not ports:
        return service
    from enforcement.cli.beside import monitored

    monitor, (first, workers) = service.move_metrics(), map(int, ports.split())
    found = monitored(service, lambda: monitor, host, first, workers)
    if found is None:
        logger.warning("Metrics are not served: port %d of %s is taken.", first, host)
    return found or service


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "sluicegate serve",
        "Run the decision service, which nginx, Envoy, Caddy, Traefik and HAProxy ask about each request.",
        _EPILOG,
    )
    servers.add_options(parser, port=9000, server="h2corn")
    parser.add_argument(
        "--http1-port",
        metavar="PORT",
        type=servers.port_number,
        help="a second port, for callers that speak HTTP/1.0, as nginx does unless told otherwise; --port refuses that",
    )
    parser.add_argument(
        "--metrics-port",
        metavar="PORT",
        type=servers.port_number,
        help="port of /metrics, which --port then does not answer. With several processes the next ports, too",
    )
    parser.add_argument(
        "--deadline",
        metavar="MS",
        type=int,
        help="milliseconds that the proxy waits for an answer, so that each answer comes before; "
        f"at most {MOST_DEADLINE_MS}; default: SLUICEGATE_DEADLINE_MS",
    )
    parser.add_argument(
        "--drain",
        metavar="SECONDS",
        type=_seconds,
        default=0,
        help="after SIGTERM, answer for so long while /readyz says 503, so that proxies choose another instance; "
        f"at most {_MOST_DRAIN_SECONDS}; default: %(default)s",
    )
    return parser


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= _MOST_DRAIN_SECONDS):
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to {_MOST_DRAIN_SECONDS}, got {text!r}")
    return int(text)
