"""Requests that claim a label of another token, at the doors that read attributes."""

from enforcement import Limit, Match, aio
from enforcement.doors.asgi import LimitMiddleware
from enforcement.embedded import ValkeyServer
from enforcement.testing import Published, Store
from tests.enforcement.doors.conftest import Serve, bearer
from tests.enforcement.doors.test_anonymous import hello

TEAM = Limit(name="team", quota=2, window_seconds=3600, partition_by=("label.team", "path"))
EVE = Limit(name="eve", quota=0, window_seconds=3600, match=Match(attributes={"label.team": "blue"}))
CLAIMS = {"label.team": "blue", "header.label.team": "blue", "Label.Team": "blue"}


def test_the_asgi_door_takes_no_label_from_fields_or_from_its_function(store: ValkeyServer, serve: Serve) -> None:
    """Neither a field of that name nor an attribute that an application makes of the request."""
    Store(store).clear()
    world = Published(store.url)
    world.policy("teams", TEAM, EVE)
    world.project(policy="teams")
    secret = world.token(labels={"team": "red"})
    limiter = aio.Limiter(store.url, timeout=1.0)
    app = LimitMiddleware(hello, limiter, attributes=lambda scope: {"label.team": "blue"})
    client = serve(app)

    statuses = [client.get("/x", headers={**bearer(secret), **CLAIMS}).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
