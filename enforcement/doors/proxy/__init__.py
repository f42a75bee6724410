"""
A streaming reverse proxy behind the ASGI middleware.

>>> sluicegate proxy --port 8080
>>> uvicorn --factory --no-proxy-headers enforcement.doors.proxy:create_app

Bodies are streamed in both directions, and nothing waits in memory but what a slow side has not taken yet. The
environment sets:

- ``SLUICEGATE_UPSTREAM_URL``: where requests go, ``http://`` or ``https://``, with a path prefix if needed.
- ``SLUICEGATE_UPSTREAMS_FILE``: in place of it, a TOML file with an upstream for each path prefix.
- ``SLUICEGATE_UPSTREAM_CREDENTIAL``, ``_CREDENTIAL_FILE``, ``_CREDENTIAL_FOLDER``, ``_CREDENTIAL_FIELD``: what the
  upstream gets in place of the token, see :class:`~enforcement.doors.proxy.credentials.Credentials`.
- ``SLUICEGATE_UPSTREAM_ALLOWED_FIELDS``: fields of requests that a bound admits beside those that it knows, such as
  ``turbo=none,quick=1.5``, see :func:`~enforcement.metering.bound.field_rates`.
- ``SLUICEGATE_UPSTREAM_INCLUDE_USAGE``, ``_CAP_FIELD``: what is written into metered requests, for servers that refuse
  ``stream_options`` or know no ``max_completion_tokens``.
- ``SLUICEGATE_UPSTREAM_TIMEOUT``: seconds that the upstream may be silent, 60 by default.
- ``SLUICEGATE_HEADERS``: preset of the rate limit fields, ``ietf`` by default.
- ``SLUICEGATE_TRUSTED_PROXIES``: networks, separated by commas, whose ``X-Forwarded-For`` is trusted. Then run uvicorn
  with ``--no-proxy-headers``, because it would rewrite addresses by a list of its own.
- ``SLUICEGATE_ANONYMOUS_PROJECT``: slug of the project that requests without a token count for. If it is not set, they
  are refused with 401.
- ``SLUICEGATE_METER``: ``auto`` reads what requests to providers of models cost, if a limit of their token needs it.
  ``off`` reads no body.
- ``SLUICEGATE_ANSWER_DRAIN_SECONDS``, ``_MIB``, ``SLUICEGATE_ANSWER_DRAINS``: how much is read of answers whose clients
  left, and of how many at once.
- ``SLUICEGATE_MCP_PATHS``: paths of MCP servers, separated by commas, whose denials are errors of JSON-RPC.
- ``SLUICEGATE_UPSTREAM_PLACES``: how many requests may be under way to an upstream.
- ``SLUICEGATE_TOKEN_SHARE``, ``SLUICEGATE_PROJECT_SHARE``: the percentage of them for one token and one project.
- ``SLUICEGATE_METRICS_NETWORKS``: networks that may read ``/metrics``, private ones by default.
- ``SLUICEGATE_USAGE_ENDPOINT``: ``false`` hides the page on which each token sees its own limits.
"""

from __future__ import annotations

from enforcement.aio import Limiter
from enforcement.doors.asgi import LimitMiddleware
from enforcement.doors.proxy.pool import IDLE_SECONDS
from enforcement.doors.proxy.settings import ProxySettings
from enforcement.doors.proxy.upstream import Proxy


def create_app() -> LimitMiddleware:
    """
    Return the proxy as an ASGI application, configured by environment variables.

    Raises:
        ValueError: A variable is missing or not valid. The message names it.
    """
    settings, limiter = ProxySettings.from_env(), Limiter.from_env()
    proxy = Proxy(limiter, settings)
    # No request to an exempt path may reach an upstream.
    return LimitMiddleware(
        proxy,
        limiter,
        headers=settings.headers,
        exempt=proxy.pages,
        trusted_proxies=settings.trusted,
        anonymous=settings.anonymous,
        usage_endpoint=settings.usage_endpoint,
        metered=settings.meters,
        json_rpc=settings.json_rpc,
    )


__all__ = ["IDLE_SECONDS", "create_app"]
