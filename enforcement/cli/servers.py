"""Run an ASGI application of this library on one of the servers that can."""

from __future__ import annotations

import argparse
import ssl
import sys
from importlib import import_module
from typing import Final

REFUSED: Final = 2

SHUTDOWN_SECONDS: Final = 30
"""How long requests may go on when the server is stopped. Some responses never end."""

_EXTRAS: Final = {"h2corn": "service", "uvicorn": "proxy", "httptools": "proxy"}


def add_options(parser: argparse.ArgumentParser, *, port: int, server: str) -> None:
    """Add the options of a server, with its default port and the server that runs by default."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument("--port", type=_port, default=port, help="port to listen on; default: %(default)s")
    parser.add_argument("--workers", type=_workers, default=1, help="number of processes; default: %(default)s")
    parser.add_argument("--certfile", metavar="FILE", help="certificate chain for TLS, as PEM")
    parser.add_argument("--keyfile", metavar="FILE", help="private key for TLS, as PEM and not encrypted")
    parser.add_argument(
        "--server",
        choices=sorted(_RUN),
        default=server,
        help="h2corn speaks HTTP/1.1 and HTTP/2, uvicorn HTTP/1.1; default: %(default)s",
    )


def serve(command: str, app: str, options: argparse.Namespace) -> int:
    """
    Run an application until it is stopped, and return the exit status.

    Args:
        command: Name of the command, for messages.
        app: Module and function that make it, as in ``package.module:create_app``.
        options: Those of :func:`add_options`.
    """
    try:
        _check_tls(options)
        _RUN[options.server](app, options)
    except (_Unusable, OSError) as exc:
        print(f"sluicegate {command}: {exc}", file=sys.stderr)
        return REFUSED
    except ModuleNotFoundError as exc:
        if exc.name not in _EXTRAS:
            raise
        extra = _EXTRAS[exc.name]
        print(f"sluicegate {command} needs the extra '{extra}': pip install 'sluicegate[{extra}]'", file=sys.stderr)
        return REFUSED
    return 0


class _Unusable(Exception):
    """An option cannot be used. The message names it."""


def _check_tls(options: argparse.Namespace) -> None:
    """Raise _Unusable if the certificate and its key cannot be used. What servers say of that names no option."""
    certificate, key = options.certfile, options.keyfile
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise _Unusable("--certfile and --keyfile: must be set together.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, "")
    except (OSError, ValueError) as exc:
        rule = "must name a certificate and its key, as PEM and not encrypted"
        raise _Unusable(f"--certfile and --keyfile: {rule}, got {certificate!r} and {key!r}: {exc}.") from exc


def _uvicorn(app: str, options: argparse.Namespace) -> None:
    import uvicorn

    from enforcement.cli.uvicorn_protocol import BoundedProtocol

    uvicorn.run(
        app,
        factory=True,
        http=BoundedProtocol,
        host=options.host,
        port=options.port,
        workers=options.workers,
        ssl_certfile=options.certfile,
        ssl_keyfile=options.keyfile,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def _h2corn(app: str, options: argparse.Namespace) -> None:
    import h2corn

    config = h2corn.Config(
        bind=(f"[{options.host}]:{options.port}" if ":" in options.host else f"{options.host}:{options.port}",),
        workers=options.workers,
        certfile=options.certfile,
        keyfile=options.keyfile,
        grpc=True,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        max_request_body_size=0,  # what an upload may have is for the application or the upstream to say
        # So is how many and how long the fields of a client may be. A proxy in front of the decision service adds its
        # own to them, and a request that is refused here gets no decision.
        limit_request_fields=1_000,
        limit_request_field_size=262_144,
    )
    module, _, factory = app.partition(":")
    h2corn.serve(getattr(import_module(module), factory), config, factory=True)


_RUN: Final = {"h2corn": _h2corn, "uvicorn": _uvicorn}


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= 65_535):
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 65535, got {text!r}")
    return int(text)


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= 256):
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to 256, got {text!r}")
    return int(text)


__all__ = ["REFUSED", "add_options", "serve"]
