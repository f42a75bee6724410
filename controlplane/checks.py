"""What would fail at night fails at start."""

import logging
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from enforcement.doctor.server import eviction_advice, persistence
from enforcement.store.client import STORE_ERRORS

logger = logging.getLogger(__name__)

MAKE_A_KEY = "python -c 'import secrets; print(secrets.token_urlsafe(50))'"
# Django's own measure, which it applies to deployments only.
KEY_LENGTH = 50
KEY_CHARACTERS = 5


def refuse_unsafe_settings() -> None:
    """
    Stop a server or worker that is about to start with settings under which it must not run.

    Raises:
        ImproperlyConfigured: With each error and its remedy.
    """
    errors = [*debug_is_off(), *secret_key_is_secret(), *hosts_are_named(), *broker_is_one_server()]
    if errors:
        raise ImproperlyConfigured("\n".join(f"{error.id}: {error.msg} {error.hint}" for error in errors))


def warn_of_store() -> None:
    """Log what the store's checks find, and what to do about it: nobody asks for them when a site starts."""
    for found in (*store_keeps_documents(), *store_outlives_a_restart()):
        logger.warning("%s: %s %s", found.id, found.msg, found.hint)


@checks.register(checks.Tags.security)
def debug_is_off(**_: Any) -> list[checks.CheckMessage]:
    if not settings.DEBUG or settings.ALLOW_DEBUG:
        return []
    hint = "Unset DEBUG. On a machine that only you can reach, set SLUICEGATE_ALLOW_DEBUG=1 beside it."
    return [checks.Error("DEBUG is on: every error page shows settings and code.", hint, id="sluicegate.E001")]


@checks.register(checks.Tags.security)
def secret_key_is_secret(**_: Any) -> list[checks.CheckMessage]:
    try:
        key = settings.SECRET_KEY
    except ImproperlyConfigured:  # what Django says of an empty one
        key = ""
    if len(key) >= KEY_LENGTH and len(set(key)) >= KEY_CHARACTERS and not key.startswith("django-insecure-"):
        return []
    message = "SECRET_KEY is missing, a default, or too short: sessions could be forged."
    return [checks.Error(message, f"Set SECRET_KEY to the output of: {MAKE_A_KEY}", id="sluicegate.E002")]


@checks.register(checks.Tags.security)
def hosts_are_named(**_: Any) -> list[checks.CheckMessage]:
    if "*" not in settings.ALLOWED_HOSTS:
        return []
    hint = "Set ALLOWED_HOSTS to the names under which people reach this server, separated by commas."
    return [checks.Error("ALLOWED_HOSTS allows every host name.", hint, id="sluicegate.E003")]


@checks.register(checks.Tags.caches)
def broker_is_one_server(**_: Any) -> list[checks.CheckMessage]:
    scheme = settings.BROKER_URL.partition("://")[0]
    if scheme in ("redis", "rediss"):
        return []
    message = f"Celery and the cache cannot use {scheme}://: they take the address of one server."
    hint = "Set SLUICEGATE_BROKER_URL to redis:// or rediss:// of a server for them."
    return [checks.Error(message, hint, id="sluicegate.E004")]


@checks.register("store", deploy=True)
def store_keeps_documents(**_: Any) -> list[checks.CheckMessage]:
    from controlplane.publishing import store

    try:
        policy = store.connection(settings.PUBLISH_TIMEOUT_SECONDS).info("memory").get("maxmemory_policy")
    except STORE_ERRORS as exc:
        hint = "Set SLUICEGATE_REDIS_URL, and see that the server runs. Changes are kept until it answers."
        return [checks.Warning(f"The store does not answer: {exc}", hint, id="sluicegate.W005")]
    hint = eviction_advice(policy)
    if not hint:
        return []
    message = f"The store may evict what it holds (maxmemory-policy {policy}): lost counters admit too much."
    return [checks.Warning(message, hint, id="sluicegate.W004")]


@checks.register("store", deploy=True)
def store_outlives_a_restart(**_: Any) -> list[checks.CheckMessage]:
    from controlplane.publishing import store

    try:
        findings = [*persistence(store.connection(settings.PUBLISH_TIMEOUT_SECONDS))]
    except STORE_ERRORS:
        return []  # store_keeps_documents() tells it
    unwell = [finding for finding in findings if finding.level != "ok"]
    return [checks.Warning(f"The store: {it.value}.", it.advice, id="sluicegate.W006") for it in unwell]
