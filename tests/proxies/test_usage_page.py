"""The block of nginx's configuration that the page "Own limits" shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import httpx2

from enforcement import Limit
from enforcement.embedded import ValkeyServer, free_port
from enforcement.http.limits_page import USAGE_PATH
from tests.enforcement.doors.conftest import bearer
from tests.enforcement.service.running import gateway
from tests.enforcement.world import eventually
from tests.proxies.running import installed
from tests.repository import ROOT

PAGE = (ROOT / "templates" / "docs" / "usage.md").read_text()
LIMITS = [
    Limit(name="by-ip", quota=5, window_seconds=3600, partition_by=("ip",)),
    Limit(name="by-model", quota=5, window_seconds=3600, partition_by=("model",)),
]


def test_nginx_passes_the_page_on_and_nothing_that_only_nginx_may_say(tmp_path: Path) -> None:
    """The client's address is that of its connection, and its attributes are dropped."""
    nginx, port = installed("nginx", "nginx"), free_port()
    (block,) = re.findall(r"^```nginx\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    paths = "".join(f"{it}_temp_path {tmp_path};" for it in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Sluicegate-Attributes": "model=large"}
    with (
        ValkeyServer(persistent=False) as store,
        gateway(store, tmp_path, attributes_header="X-Sluicegate-Attributes") as running,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", verify=False) as client,
    ):
        block = block.replace("127.0.0.1:9000", f"127.0.0.1:{running.service.port}")
        server = f"server {{ listen 127.0.0.1:{port}; location / {{ return 204; }} {block} }}"
        (tmp_path / "nginx.conf").write_text(
            f"pid nginx.pid; error_log stderr; events {{}} http {{ access_log off; {paths} {server} }}"
        )
        headers = {**bearer(running.token(*LIMITS)), **forged}
        process = subprocess.Popen([nginx, "-p", str(tmp_path), "-c", "nginx.conf", "-g", "daemon off;"])
        try:
            assert eventually(lambda: _answers(client), 10)
            page, head = client.get(USAGE_PATH, headers=headers), client.head(USAGE_PATH, headers=headers)
            refused = client.get(USAGE_PATH)
        finally:
            process.terminate()
            process.wait(10)

    rows = [(row["limit"], row["left"], row["partition"]) for row in page.json()["limits"]]
    assert rows == [("by-ip", 5, {"ip": "127.0.0.1"}), ("by-model", None, None)]
    assert (head.status_code, head.content, refused.status_code) == (200, b"", 401)


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/").status_code == 204
    except httpx2.TransportError:
        return False
