"""The ready-made proxy in a process of its own, before an upstream that a test writes."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.enforcement.world import eventually
from tests.forks import Forked, sluicegate


class Upstream(BaseHTTPRequestHandler):
    """A base class of handlers that answer with JSON and say nothing else."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def reply(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def ready_proxy(
    store_url: str, port: int, handler: type[Upstream], log: Path, **environment: str
) -> Iterator[Forked | subprocess.Popen[bytes]]:
    """Yield the process of a proxy that is ready. At the end it has reported its usage, and writes no more to *log*."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as upstream:
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        own = {
            "SLUICEGATE_REDIS_URL": store_url,
            "SLUICEGATE_UPSTREAM_URL": f"http://127.0.0.1:{upstream.server_port}",
            "SLUICEGATE_TIMEOUT_MS": "2000",
            "SLUICEGATE_LOOKUP_MS": "2000",
        }
        process = sluicegate(
            ["proxy", "--port", str(port), "--metrics-port", str(port)], {**os.environ, **own, **environment}, log
        )
        try:
            assert eventually(lambda: process.poll() is not None or _is_ready(port), 30), log.read_text()
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.terminate()
            process.wait(20)
            upstream.shutdown()


def _is_ready(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200
    except OSError:  # also the HTTPError of a proxy that is not ready
        return False
