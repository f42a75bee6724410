"""Checks of the settings and of the store, which run when a process starts."""

import logging
import os
import re
from collections.abc import Iterable

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from enforcement.doctor import variables
from enforcement.doctor.server import eviction_advice, persistence
from enforcement.http.addresses import TrustedProxies
from enforcement.model.checks import shown
from enforcement.model.keys import Keys
from enforcement.settings import renamed
from enforcement.store.client import STORE_ERRORS
from enforcement.store.topology import Topology

logger = logging.getLogger(__name__)

# Django compares such names with the Host field of a request, and accepts nothing else there.
_HOST = re.compile(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.?|\[[0-9A-Fa-f:.]+\]")
_ORIGIN = re.compile(r"https?://[^/?#\s]+")

MAKE_A_KEY = "python -c 'import secrets; print(secrets.token_urlsafe(50))'"
# The same limits as in Django's own check, which runs for deployments only.
KEY_LENGTH = 50
KEY_CHARACTERS = 5


def refuse_unsafe_settings() -> None:
    """
    Raise an exception if a server or worker must not start with the present settings.

    Raises:
        ImproperlyConfigured: The message has each error with its solution.
    """
    rules = (
        debug_is_off,
        secret_key_is_secret,
        hosts_are_named,
        origins_are_valid,
        store_is_named,
        broker_is_one_server,
        networks_are_valid,
    )
    errors = [error for rule in rules for error in rule()]
    if errors:
        raise ImproperlyConfigured("\n".join(f"{error.id}: {error.msg} {error.hint}" for error in errors))


def warn_at_start() -> None:
    """Log all warnings, because a worker runs no checks and Django runs most of these only with ``check --deploy``."""
    for found in (*variables_are_known(), *checks.run_checks(tags=["store", "limits"], include_deployment_checks=True)):
        logger.warning("%s: %s %s", found.id, found.msg, found.hint)


@checks.register(checks.Tags.database)
def migrations_are_known(databases: Iterable[str] | None = None, **_: object) -> list[checks.CheckMessage]:
    """Before it migrates, refuse a database whose tables other migrations have changed, as of a development version."""
    if not databases:
        return []
    ours = {app.label for app in apps.get_app_configs() if app.name.startswith("controlplane.")}
    known = {key for key in MigrationLoader(None).disk_migrations if key[0] in ours}
    applied = {key for key in MigrationRecorder(connection).applied_migrations() if key[0] in ours}
    to_come = {app for app, _ in known - applied}
    strange = sorted(key for key in applied - known if key[0] in to_come)
    if not strange:
        return []
    message = f"The database has the migration {'.'.join(strange[0])}, which is of no release. It cannot be migrated."
    hint = "Restore a backup of 0.2 or of a later release, or begin with an empty database."
    return [checks.Error(message, hint, id="sluicegate.E008")]


@checks.register(checks.Tags.security)
def debug_is_off(**_: object) -> list[checks.CheckMessage]:
    if not settings.DEBUG or settings.ALLOW_DEBUG:
        return []
    hint = "Unset DEBUG. On a machine that only you can reach, also set SLUICEGATE_ALLOW_DEBUG=1."
    return [checks.Error("DEBUG: must be off, because error pages show settings and code.", hint, id="sluicegate.E001")]


@checks.register(checks.Tags.security)
def secret_key_is_secret(**_: object) -> list[checks.CheckMessage]:
    try:
        key = settings.SECRET_KEY
    except ImproperlyConfigured:  # raised by Django for an empty key
        key = ""
    if len(key) >= KEY_LENGTH and len(set(key)) >= KEY_CHARACTERS and not key.startswith("django-insecure-"):
        return []
    message = "SECRET_KEY: must be set, random and long. Otherwise sessions can be forged."
    return [checks.Error(message, f"Set SECRET_KEY to the output of: {MAKE_A_KEY}", id="sluicegate.E002")]


@checks.register(checks.Tags.security)
def hosts_are_named(**_: object) -> list[checks.CheckMessage]:
    hint = "Set ALLOWED_HOSTS to the host names of this server, with commas between them."
    if "*" in settings.ALLOWED_HOSTS:
        return [checks.Error('ALLOWED_HOSTS: must not contain "*".', hint, id="sluicegate.E003")]
    # Django refuses every request to a host that is written in another way, and does not say why.
    rule = "ALLOWED_HOSTS: must be host names without scheme, port and path, got"
    wrong = [host for host in settings.ALLOWED_HOSTS if not _HOST.fullmatch(host)]
    return [checks.Error(f"{rule} {shown(host)}.", hint, id="sluicegate.E003") for host in wrong]


@checks.register(checks.Tags.security)
def origins_are_valid(**_: object) -> list[checks.CheckMessage]:
    hint = "Write it as https://limits.example, with commas between several origins."
    rule = "CSRF_TRUSTED_ORIGINS: must be origins with a scheme and without a path, got"
    wrong = [origin for origin in settings.CSRF_TRUSTED_ORIGINS if not _ORIGIN.fullmatch(origin)]
    return [checks.Error(f"{rule} {shown(origin)}.", hint, id="sluicegate.E006") for origin in wrong]


@checks.register(checks.Tags.caches)
def store_is_named(**_: object) -> list[checks.CheckMessage]:
    """Enforcers refuse an address or a prefix that is not valid, so the control plane may not use it either."""
    result: list[checks.CheckMessage] = []
    for name, check in (
        ("SLUICEGATE_REDIS_URL", lambda: Topology.parse(settings.REDIS_URL)),
        ("SLUICEGATE_PREFIX", lambda: Keys(settings.STORE_PREFIX)),
    ):
        try:
            check()
        except ValueError as exc:
            result.append(checks.Error(renamed(exc, name), "Enforcers need the same value.", id="sluicegate.E007"))
    return result


@checks.register(checks.Tags.caches)
def broker_is_one_server(**_: object) -> list[checks.CheckMessage]:
    hint = "Celery and the cache use a single server. Set SLUICEGATE_BROKER_URL to its address."
    scheme = settings.BROKER_URL.partition("://")[0]
    if scheme not in ("redis", "rediss"):
        if settings.BROKER_URL == settings.REDIS_URL and store_is_named():
            return []  # the address of the store is wrong, and has been reported
        message = f"SLUICEGATE_BROKER_URL: must begin with redis:// or rediss://, got {scheme}://."
        return [checks.Error(message, hint, id="sluicegate.E004")]
    if settings.BROKER_URL == settings.REDIS_URL:
        return []
    try:
        Topology.parse(settings.BROKER_URL)
    except ValueError as exc:
        return [checks.Error(renamed(exc, "SLUICEGATE_BROKER_URL"), hint, id="sluicegate.E004")]
    return []


@checks.register(checks.Tags.security)
def networks_are_valid(**_: object) -> list[checks.CheckMessage]:
    result: list[checks.CheckMessage] = []
    for name in ("TRUSTED_PROXIES", "METRICS_NETWORKS"):
        try:
            TrustedProxies(getattr(settings, name))
        except ValueError as exc:
            hint = "Separate networks by commas, for example 10.0.0.0/8,192.168.1.7."
            result.append(checks.Error(f"SLUICEGATE_{name}: {exc}.", hint, id="sluicegate.E005"))
    return result


@checks.register(checks.Tags.compatibility)
def variables_are_known(**_: object) -> list[checks.CheckMessage]:
    found = variables.unknown(os.environ)
    return [checks.Warning(f"{it.value}.", it.advice, id="sluicegate.W007") for it in found]


@checks.register("store", deploy=True)
def store_keeps_documents(**_: object) -> list[checks.CheckMessage]:
    from controlplane.core import store

    try:
        policy = store.connection(settings.PUBLISH_TIMEOUT_SECONDS).info("memory").get("maxmemory_policy")
    except STORE_ERRORS as exc:
        hint = "Check SLUICEGATE_REDIS_URL, and that the server runs. Changes are saved and published later."
        return [checks.Warning(f"The store is unavailable: {exc}", hint, id="sluicegate.W005")]
    hint = eviction_advice(policy)
    if not hint:
        return []
    message = f"The store may evict counters (maxmemory-policy {policy}). Then too many requests are allowed."
    return [checks.Warning(message, hint, id="sluicegate.W004")]


@checks.register("store", deploy=True)
def store_outlives_a_restart(**_: object) -> list[checks.CheckMessage]:
    from controlplane.core import store

    try:
        findings = [*persistence(store.connection(settings.PUBLISH_TIMEOUT_SECONDS))]
    except STORE_ERRORS:
        return []  # store_keeps_documents() reports it
    problems = [finding for finding in findings if finding.level != "ok"]
    return [checks.Warning(f"The store: {it.value}.", it.advice, id="sluicegate.W006") for it in problems]
