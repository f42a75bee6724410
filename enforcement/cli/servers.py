"""Run an ASGI application of this library on one of the servers that can."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from functools import partial
from importlib import import_module
from typing import Any, Final

from enforcement.exporters.text import WORKERS_VARIABLE
from enforcement.settings import read_seconds

REFUSED: Final = 2
IDLE_SECONDS: Final = 120
"""How long an idle connection stays open. Proxies should close theirs earlier, or a request may meet a closed one."""

MOST_FILES: Final = 65_536
"""Files that a process may have open at once, if the operating system lets it."""

_FILES_BESIDE_CONNECTIONS: Final = 128

_EXTRAS: Final = {"h2corn": "service", "uvicorn": "proxy", "httptools": "proxy"}


def add_options(parser: argparse.ArgumentParser, *, port: int, server: str) -> None:
    """Add the options of a server, with its default port and the server that runs by default."""
    parser.add_argument("--host", type=_host, default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument("--port", type=port_number, default=port, help="port to listen on; default: %(default)s")
    parser.add_argument("--workers", type=_workers, default=1, help="number of processes; default: %(default)s")
    parser.add_argument("--certfile", metavar="FILE", help="certificate chain for TLS, as PEM")
    parser.add_argument("--keyfile", metavar="FILE", help="private key for TLS, as PEM and not encrypted")
    parser.add_argument(
        "--server",
        choices=sorted(_RUN),
        default=server,
        help="h2corn speaks HTTP/1.1 and HTTP/2, uvicorn HTTP/1.1; default: %(default)s",
    )


def serve(command: str, app: str, options: argparse.Namespace, *, grace: int) -> int:
    """
    Run an application until it is stopped, and return the exit status.

    Args:
        command: Name of the command, for messages.
        app: Module and function that make it, as in ``package.module:create_app``.
        options: Those of :func:`add_options`.
        grace: Seconds that requests have to end once the server is told to stop.
    """
    http1_port = getattr(options, "http1_port", None)
    if http1_port is not None and options.server != "h2corn":
        print(
            f"sluicegate {command}: --http1-port: is for h2corn only; {options.server} speaks HTTP/1.0 on --port.",
            file=sys.stderr,
        )
        return REFUSED
    try:
        second_port = http1_port is not None or getattr(options, "metrics_port", None) is not None
        for name in (*_NEEDED[options.server], *(_NEEDED["uvicorn"] if second_port else ())):
            import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name not in _EXTRAS:
            raise
        extra = _EXTRAS[exc.name]
        print(f"sluicegate {command} needs the extra '{extra}': pip install 'sluicegate[{extra}]'", file=sys.stderr)
        return REFUSED
    try:
        _check_certificate(options.certfile, options.keyfile)
        check_address("--port", options.host, options.port)
        if http1_port is not None:
            if http1_port == options.port:
                raise ValueError(f"--http1-port: must differ from --port, got {http1_port}")
            check_address("--http1-port", options.host, http1_port)
        # How long a client may send nothing of a body, or take nothing of a response that waits for it.
        options.client_seconds = read_seconds(os.environ, "SLUICEGATE_CLIENT_TIMEOUT", "30")
    except ValueError as exc:
        print(f"sluicegate {command}: {exc}", file=sys.stderr)
        return REFUSED
    os.environ[WORKERS_VARIABLE] = str(options.workers)
    _RUN[options.server](app, options, grace)
    return 0


def _uvicorn_options(options: argparse.Namespace, grace: int) -> dict[str, Any]:
    from enforcement.cli.uvicorn_protocol import BoundedProtocol

    return {
        "interface": "asgi3",  # uvicorn would look for a coroutine function
        "ssl_certfile": options.certfile,
        "ssl_keyfile": options.keyfile,
        "access_log": False,
        "proxy_headers": False,
        "http": partial(BoundedProtocol, client_seconds=options.client_seconds),
        "timeout_keep_alive": IDLE_SECONDS,
        "timeout_graceful_shutdown": grace,
    }


def _uvicorn(app: str, options: argparse.Namespace, grace: int) -> None:
    import uvicorn

    _raise_most_files()
    # uvicorn stops as it should and then sends itself the signal again, which would end this process by the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        app,
        factory=True,
        host=options.host,
        port=options.port,
        workers=options.workers,
        **_uvicorn_options(options, grace),
    )


def _h2corn(app: str, options: argparse.Namespace, grace: int) -> None:
    import h2corn

    http1_port = getattr(options, "http1_port", None)
    config = h2corn.Config(
        host=options.host,
        port=options.port,
        workers=options.workers,
        certfile=options.certfile,
        keyfile=options.keyfile,
        grpc=True,
        access_log=False,
        max_request_body_size=0,  # what an upload may have is for the application or the upstream to say
        # So is how many and how long the fields of a client may be. A proxy in front of the decision service adds its
        # own to them, and a request that is refused here gets no decision.
        limit_request_fields=1_000,
        limit_request_field_size=262_144,
        limit_request_line=262_144,
        # A worker of h2corn ends if it may open no more files. It has to refuse connections before.
        limit_connections=max(1, (_raise_most_files() - _FILES_BESIDE_CONNECTIONS) // (1 + bool(http1_port))),
        timeout_keep_alive=IDLE_SECONDS,
        timeout_request_body_idle=options.client_seconds,
        h2_timeout_response_stall=options.client_seconds,
        timeout_request_header=IDLE_SECONDS,  # the smaller one of both counts for idle connections of HTTP/1.1
        timeout_graceful_shutdown=float(grace),
    )
    module, _, name = app.partition(":")
    factory = getattr(import_module(module), name)
    if http1_port is None:
        if hasattr(options, "http1_port"):
            # h2corn answers it by an empty 400, and logs nothing.
            print(f"Port {options.port} refuses HTTP/1.0 with 400; see --http1-port.", file=sys.stderr)
        h2corn.serve(factory, config, factory=True)
        return
    from enforcement.cli.beside import Beside, listen

    listeners, more = listen(options.host, http1_port), {**_uvicorn_options(options, grace), "log_level": "warning"}
    print(f"HTTP/1.0 and HTTP/1.1 on {options.host}, port {http1_port}", file=sys.stderr)
    h2corn.serve(lambda: Beside(factory(), listeners, more), config, factory=True)


_RUN: Final = {"h2corn": _h2corn, "uvicorn": _uvicorn}
_NEEDED: Final = {"h2corn": ("h2corn",), "uvicorn": ("uvicorn", "httptools")}


def _check_certificate(certificate: str | None, key: str | None) -> None:
    """Raise ValueError if a server could not use the files of a certificate and its key, or has only one of them."""
    if certificate is None and key is None:
        return
    if not certificate or not key:
        raise ValueError("--certfile and --keyfile: must be given together.")
    for option, path in (("--certfile", certificate), ("--keyfile", key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as exc:
            raise ValueError(f"{option}: cannot be read: {exc.strerror}: {path}") from exc
    import ssl

    try:
        # No server asks for a password, because none has a terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or exc
        raise ValueError(
            f"--certfile and --keyfile: must be PEM files of one key without a password: {reason}"
        ) from exc


def check_address(option: str, host: str, port: int) -> None:
    """Raise ValueError if no server could listen on an address."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
    except OSError as exc:
        raise ValueError(f"--host, {option}: cannot listen on {host}, port {port}: {exc.strerror}") from exc


def _raise_most_files() -> int:
    """Let this process and its workers open as many files as they may, and return how many that is."""
    try:
        import resource
    except ModuleNotFoundError:
        return MOST_FILES  # Windows has no such limit
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if least == resource.RLIM_INFINITY:
        return MOST_FILES
    files = MOST_FILES if most == resource.RLIM_INFINITY else min(MOST_FILES, most)
    if files > least:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return max(files, least)


def _host(text: str) -> str:
    # Some servers take an empty name for all addresses of the machine.
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text.removeprefix("[").removesuffix("]")


def port_number(text: str) -> int:
    """Return the number of a port, as :mod:`argparse` wants it."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65_535):
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to 65535, got {text!r}")
    return int(text)


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= 256):
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to 256, got {text!r}")
    return int(text)
