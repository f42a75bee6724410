"""Find environment variables that look like settings and are none, because a misspelt name is ignored in silence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from enforcement.doctor.findings import Finding
from enforcement.model.spelling import closest

LIBRARY: Final = (
    "SLUICEGATE_DECISION_KEY",
    "SLUICEGATE_FLEET_SIZE",
    "SLUICEGATE_INSTANCE",
    "SLUICEGATE_IN_CODE",
    "SLUICEGATE_LOOKUP_MS",
    "SLUICEGATE_PREFIX",
    "SLUICEGATE_REDIS_URL",
    "SLUICEGATE_RESERVATION_SHARE",
    "SLUICEGATE_STATE_DIR",
    "SLUICEGATE_TIMEOUT_MS",
    "SLUICEGATE_VALKEY_BINARY",
    # Only the commands that call a control plane read these.
    "SLUICEGATE_KEY",
    "SLUICEGATE_URL",
    # Only the proxy and the decision service read these.
    "SLUICEGATE_ANONYMOUS_PROJECT",
    "SLUICEGATE_ANSWER_DRAINS",
    "SLUICEGATE_ANSWER_DRAIN_MIB",
    "SLUICEGATE_ANSWER_DRAIN_SECONDS",
    "SLUICEGATE_ATTRIBUTES_HEADER",
    "SLUICEGATE_CLIENT_TIMEOUT",
    "SLUICEGATE_COSTS_HEADER",
    "SLUICEGATE_DEADLINE_MS",
    "SLUICEGATE_DRAINING_FILE",
    "SLUICEGATE_HEADERS",
    "SLUICEGATE_MCP_PATHS",
    "SLUICEGATE_METER",
    "SLUICEGATE_METRICS_PORT",
    "SLUICEGATE_PROJECT_SHARE",
    "SLUICEGATE_RLS_MAPPING",
    "SLUICEGATE_SERVICE_CALLERS",
    "SLUICEGATE_SERVICE_SECRET",
    "SLUICEGATE_TOKEN_SHARE",
    "SLUICEGATE_TRUSTED_PROXIES",
    "SLUICEGATE_UPSTREAMS_FILE",
    "SLUICEGATE_UPSTREAM_ALLOWED_FIELDS",
    "SLUICEGATE_UPSTREAM_CAP_FIELD",
    "SLUICEGATE_UPSTREAM_CREDENTIAL",
    "SLUICEGATE_UPSTREAM_CREDENTIAL_FIELD",
    "SLUICEGATE_UPSTREAM_CREDENTIAL_FILE",
    "SLUICEGATE_UPSTREAM_CREDENTIAL_FOLDER",
    "SLUICEGATE_UPSTREAM_INCLUDE_USAGE",
    "SLUICEGATE_UPSTREAM_PLACES",
    "SLUICEGATE_UPSTREAM_TIMEOUT",
    "SLUICEGATE_UPSTREAM_URL",
    "SLUICEGATE_USAGE_ENDPOINT",
)
CONTROL_PLANE: Final = (
    "SLUICEGATE_ALERT_NETWORKS",
    "SLUICEGATE_ALERT_SERVICES",
    "SLUICEGATE_ALLOW_DEBUG",
    "SLUICEGATE_BROKER_URL",
    "SLUICEGATE_CURRENCY",
    "SLUICEGATE_DRAINS",
    "SLUICEGATE_EMAIL_FROM",
    "SLUICEGATE_EMAIL_URL",
    "SLUICEGATE_ENFORCER_PASSWORD",
    "SLUICEGATE_ENVIRONMENT",
    "SLUICEGATE_HTTPS",
    "SLUICEGATE_METRICS_NETWORKS",
    "SLUICEGATE_PORT",
    "SLUICEGATE_PROXY_URL",
    "SLUICEGATE_PUBLISHER_PASSWORD",
    "SLUICEGATE_REPORTED_COSTS",
    "SLUICEGATE_REQUIRE_SECOND_FACTOR",
    "SLUICEGATE_REST_CONSUMER_RATE",
    "SLUICEGATE_REST_FAILURE_RATE",
    "SLUICEGATE_REST_RATE",
    "SLUICEGATE_VAR",
    "SLUICEGATE_WORKER_PASSWORD",
)
"""One shell often serves both, so the doctor knows these too. It cannot import the control plane."""
# The password of an account for one project: `store_acl --project` makes the name from the slug.
_OF_AN_ACCOUNT: Final = re.compile(r"SLUICEGATE_ENFORCER_[A-Z0-9_]+_PASSWORD")
_TESTS: Final = ("SLUICEGATE_PROOF", "SLUICEGATE_SCREENSHOTS")
_BEGINNING: Final = "SLUICEGATE_"
# Kubernetes and Docker links describe every service whose name begins with "sluicegate" in such variables.
_OF_A_SERVICE: Final = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")


def unknown(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a warning for each variable that begins like a setting and is none, with the setting that is nearest."""
    known = (*LIBRARY, *CONTROL_PLANE)
    for name in sorted(environ):
        if not name.startswith(_BEGINNING) or name in known or name in _TESTS or not environ[name]:
            continue
        if _OF_AN_ACCOUNT.fullmatch(name) or _OF_A_SERVICE.fullmatch(name) or _ADDRESS.match(environ[name]):
            continue
        near = closest(name, known, similar=0.8)
        advice = f"Did you mean {near[0]}?" if near else "Remove it. The page Settings lists the names."
        yield Finding("variables", "warning", f"{name} is no setting and has no effect", advice)
