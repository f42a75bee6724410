"""Two decision services behind each proxy of docker/proxies, as the page about proxies has them, restarted in turn."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enforcement import Limiter
from tests.enforcement.service.running import Service, service
from tests.enforcement.traffic import traffic
from tests.enforcement.world import World, eventually, fixed
from tests.proxies.conftest import WITH_ROOM
from tests.proxies.recipes import CADDY, HAPROXY, NGINX, TRAEFIK
from tests.proxies.running import CONFIGURATIONS, Recipe, ask, running
from tests.proxies.test_recipes import shows
from tests.repository import ROOT
from tests.scale import scale

PAGE = (ROOT / "templates" / "docs" / "proxies.md").read_text()
SECTION = PAGE.partition("\n## More than one instance\n")[2].partition("\n## ")[0]
QUOTA = 1_000_000


def shown(language: str) -> str:
    """Return what the section adds to the configuration in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)[0]


ADDED: dict[Recipe, Callable[[str], str]] = {
    NGINX: lambda text: text.replace(
        "server 127.0.0.1:9000 max_fails=0;", "server 10.0.0.1:9000 max_fails=0; server 10.0.0.2:9000 max_fails=0;"
    ).replace("            error_page 502 504 = @open;\n", ""),
    CADDY: lambda text: text.replace("\treverse_proxy 127.0.0.1:9000 {\n", shown("caddyfile")),
    HAPROXY: lambda text: (
        text.replace("    # http-request deny deny_status 503", "    http-request deny deny_status 503")
        .replace("sluicegate.lua http://127.0.0.1:9000", "sluicegate.lua http://127.0.0.1:9001")
        .replace("frontend edge\n", shown("haproxy") + "\nfrontend edge\n")
    ),
    TRAEFIK: lambda text: text.replace("        servers:\n          - url: http://127.0.0.1:9000\n", shown("yaml")),
}
"""How an operator adds a second instance. Requests without a decision are refused, so that they are seen."""


def restart(one: Service) -> None:
    """Stop a service as an operator does, and start it again when the proxy had time to miss it."""
    one.stop()
    time.sleep(0.3)
    one.start()
    time.sleep(1.5)  # the proxies look at it once a second


@pytest.mark.proof
@pytest.mark.parametrize("recipe", scale([NGINX], list(ADDED)), ids=lambda recipe: recipe.name)
def test_a_rolling_restart_leaves_no_request_undecided(
    world: World, server, recipe: Recipe, application, tmp_path: Path
) -> None:
    """Neither instance is missed while it restarts, and each request is charged once."""
    secret = world.everything(fixed(QUOTA))
    options = {"arguments": ["--deadline", "400", "--drain", str(0 if recipe is NGINX else 3)]}
    options |= {name.removeprefix("SLUICEGATE_").lower(): value for name, value in WITH_ROOM.items()}
    for name in "one", "two":
        (tmp_path / name).mkdir()
    with (
        service(server.url, tmp_path / "one", **options) as one,
        service(server.url, tmp_path / "two", **options) as two,
    ):

        def change(text: str) -> str:
            text = ADDED[recipe](text)
            return text.replace("10.0.0.1:9000", f"127.0.0.1:{one.port}").replace(
                "10.0.0.2:9000", f"127.0.0.1:{two.port}"
            )

        with running(recipe, service=one.port, application=application.port, change=change) as proxy:
            with traffic(lambda: ask(proxy.port, "/", shows(secret)).status) as statuses:
                restart(one)
                restart(two)

            assert set(statuses) == {200}, (statuses, proxy.log)
            with Limiter(server.url) as limiter:
                assert eventually(lambda: QUOTA - limiter.check(secret, 0).remaining == statuses[200])


def test_every_proxy_has_its_lines() -> None:
    """None is left out of the page or of the test above."""
    assert {recipe.name for recipe in ADDED} | {"envoy"} == {path.name for path in CONFIGURATIONS.iterdir()}
    assert {name.lower() for name in re.findall(r"^\*\*(\w+)\.\*\*", SECTION, re.MULTILINE)} == {
        path.name for path in CONFIGURATIONS.iterdir()
    }
