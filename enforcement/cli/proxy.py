"""The command ``sluicegate proxy``. It runs the reverse proxy."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

from enforcement.cli import servers
from enforcement.cli.options import new_parser
from enforcement.doors import proxy
from enforcement.doors.proxy.upstream import Proxy
from enforcement.http.asgi import App
from enforcement.settings import read_variable

METRICS_PORT: Final = 9464
"""That of OpenTelemetry's exporter for Prometheus."""

_METRICS: Final = "SLUICEGATE_METRICS_PORT"
_ADDRESS: Final = "_SLUICEGATE_METRICS"
"""Host, port and number of processes, for the workers."""

STOP_SECONDS: Final = 30
"""How long requests may go on once the proxy is told to stop. Some stream long answers."""

logger = logging.getLogger("sluicegate.proxy")

_EPILOG: Final = """\
The store, the upstream, the trusted proxies and everything else are set by environment variables; the page "The
ready-made proxy" of the documentation lists them.

exit status:
  0  it was stopped
  2  an option or variable is wrong, or the server is not installed
"""


def main(arguments: Sequence[str]) -> int:
    """Run the proxy until it is stopped, and return the exit status."""
    parser = new_parser(
        "sluicegate proxy",
        "Run the reverse proxy, which limits the requests to an upstream.",
        _EPILOG,
    )
    servers.add_options(parser, port=8080, server="uvicorn")
    parser.add_argument(
        "--metrics-port",
        type=servers.port_number,
        help=f"port of /metrics. With several processes the next ports, too; default: {_METRICS}, or {METRICS_PORT} if "
        "that is free. The same as --port: no port of its own",
    )
    options = parser.parse_args(arguments)
    try:
        proxy.create_app()  # does no I/O to the store, and tells at once what is wrong
        port = options.metrics_port or read_variable(os.environ, _METRICS, "", _port)
        if port not in (None, options.port):
            servers.check_address("--metrics-port", options.host, port)
    except ValueError as exc:
        print(f"sluicegate proxy: {exc}", file=sys.stderr)
        return servers.REFUSED
    if port == options.port:
        os.environ.pop(_ADDRESS, None)
    else:
        os.environ[_ADDRESS] = f"{options.host} {port or METRICS_PORT} {options.workers}"
    return servers.serve("proxy", "enforcement.cli.proxy:create_app", options, grace=STOP_SECONDS)


def create_app() -> App:
    """Return the proxy as an ASGI application, with a server for metrics beside it if there is a port for that."""
    app = proxy.create_app()
    host, _, ports = os.environ.get(_ADDRESS, "").partition(" ")
    if not ports or not isinstance(app.app, Proxy):
        return app
    from enforcement.cli.beside import monitored

    monitor, (first, workers) = app.app.move_metrics(), map(int, ports.split())
    result = monitored(app, lambda: monitor, host, first, workers)
    if result is not None:
        return result
    logger.warning("Metrics are not served: port %d of %s is taken. Set --metrics-port.", first, host)
    return app


def _port(text: str) -> int | None:
    try:
        return servers.port_number(text) if text else None
    except argparse.ArgumentTypeError as exc:
        raise ValueError(f"{exc}.") from exc
