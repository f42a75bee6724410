"""The proxies of docker/proxies, and how each is started."""

from __future__ import annotations

from pathlib import Path

from tests.apart import program
from tests.proxies.running import Recipe, installed


def _nginx(folder: Path, configuration: str = "nginx.conf") -> list[str]:
    return [installed("nginx", "nginx"), "-p", str(folder), "-c", configuration, "-g", "daemon off;"]


def _haproxy(folder: Path) -> list[str]:
    return [installed("haproxy", "haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]


def _caddy(folder: Path) -> list[str]:
    return [str(program("proxies", "caddy")), "run", "--config", str(folder / "Caddyfile")]


def _traefik(folder: Path) -> list[str]:
    return [str(program("proxies", "traefik")), "--configfile=traefik.yaml"]


NGINX = Recipe("nginx", _nginx, opens=True)
MINIMAL_NGINX = Recipe("nginx", lambda folder: _nginx(folder, "minimal.conf"), gone=500, shows_limits=False)
HAPROXY = Recipe("haproxy", _haproxy, opens=True)
CADDY = Recipe("caddy", _caddy, gone=502)
TRAEFIK = Recipe("traefik", _traefik, shows_limits=False, gone=502)
RECIPES = (NGINX, CADDY, HAPROXY, TRAEFIK)
