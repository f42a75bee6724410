"""The command ``sluicegate serve``. It runs the decision service, which other proxies ask about each request."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from enforcement.service.app import create_app
from enforcement.service.settings import MOST_DEADLINE_MS

STOPPED, REFUSED = 0, 2

_EPILOG: Final = """\
The store, the trusted proxies and everything else are set by environment variables; the page "Decision service" of the
documentation lists them.

exit status:
  0  it was stopped
  2  an option or variable is wrong, or the server is not installed
"""


def main(arguments: Sequence[str]) -> int:
    """Run the service until it is stopped, and return the exit status."""
    options = _parser().parse_args(arguments)
    if options.deadline is not None:
        os.environ["SLUICEGATE_DEADLINE_MS"] = str(options.deadline)
    try:
        create_app()  # does no I/O, and tells at once what is wrong
        _serve(options)
    except ValueError as exc:
        print(f"sluicegate serve: {exc}", file=sys.stderr)
        return REFUSED
    except ModuleNotFoundError as exc:
        if exc.name not in ("h2corn", "uvicorn"):
            raise
        extra = "service" if exc.name == "h2corn" else "proxy"
        print(f"sluicegate serve needs the extra '{extra}': pip install 'sluicegate[{extra}]'", file=sys.stderr)
        return REFUSED
    return STOPPED


def _serve(options: argparse.Namespace) -> None:
    if options.server == "uvicorn":
        import uvicorn

        uvicorn.run(
            "enforcement.service.app:create_app",
            factory=True,
            host=options.host,
            port=options.port,
            workers=options.workers,
            ssl_certfile=options.certfile,
            ssl_keyfile=options.keyfile,
            access_log=False,
            proxy_headers=False,
        )
        return
    import h2corn

    config = h2corn.Config(
        bind=(f"{options.host}:{options.port}",),
        workers=options.workers,
        certfile=options.certfile,
        keyfile=options.keyfile,
        grpc=True,
        access_log=False,
        # How many and how long the fields of a client may be is for the proxy to say, which adds its own to them. A
        # request that is refused here gets no decision.
        limit_request_fields=1_000,
        limit_request_field_size=262_144,
    )
    h2corn.serve(create_app, config, factory=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sluicegate serve",
        description="Run the decision service, which nginx, Envoy, Caddy, Traefik and HAProxy ask about each request.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument("--port", type=int, default=9000, help="port to listen on; default: %(default)s")
    parser.add_argument("--workers", type=_workers, default=1, help="number of processes; default: %(default)s")
    parser.add_argument(
        "--deadline",
        metavar="MS",
        type=int,
        help="milliseconds that the proxy waits for an answer, so that each answer comes before; "
        f"at most {MOST_DEADLINE_MS}; default: SLUICEGATE_DEADLINE_MS",
    )
    parser.add_argument("--certfile", metavar="FILE", help="certificate chain for TLS, as PEM")
    parser.add_argument("--keyfile", metavar="FILE", help="private key for TLS, as PEM")
    parser.add_argument(
        "--server",
        choices=("h2corn", "uvicorn"),
        default="h2corn",
        help="uvicorn speaks HTTP/1.1 only, so it has no gRPC; default: %(default)s",
    )
    return parser


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= 256):
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to 256, got {text!r}")
    return int(text)
