"""How soon a real proxy follows, and what its clients get."""

import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from types import SimpleNamespace

import httpx2
import pytest
from django.utils import timezone

from controlplane.objects.emergency.actions import break_glass, mend_glass, resume, suspend, suspend_value
from tests.enforcement.doors.proxy.conftest import running

pytestmark = pytest.mark.django_db(transaction=True)


class Upstream(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_) -> None:
        """Say nothing."""


@pytest.fixture
def upstream():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_proxy_follows_within_a_second(token, act, upstream, client_of_store):
    """A suspension, its end, a broken glass and its end. A refused client gets 403, and the reason beside it."""
    published = SimpleNamespace(client=client_of_store)
    with running(published, SLUICEGATE_UPSTREAM_URL=upstream) as proxy, httpx2.Client() as client:

        def get(address="192.0.2.1", **headers):
            headers = {"Authorization": f"Bearer {token.secret}", "X-Session": address, **headers}
            answer = client.get(f"http://127.0.0.1:{proxy.port}/", headers=headers)
            return answer.status_code, answer.headers.get("Sluicegate-Denial", "")

        def lasts_until(*expected):
            begun = monotonic()
            while (found := get()) != expected:
                assert monotonic() < begun + 1, f"still {found} after a second"

        assert [get() for _ in range(3)] == [(204, ""), (204, ""), (429, "limited")]
        for action, arguments in (
            (suspend, [token]),
            (suspend, [token.project]),
            (suspend_value, ["header.x-session", "192.0.2.1", token.project]),
        ):
            suspension = act(action, *arguments)
            lasts_until(403, "suspended")
            act(resume, suspension)
            lasts_until(429, "limited")
        act(break_glass, timezone.now() + timedelta(hours=1))
        lasts_until(204, "")
        act(mend_glass)
        lasts_until(429, "limited")
