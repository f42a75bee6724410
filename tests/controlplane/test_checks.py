import os
import subprocess
import sys

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured, ValidationError

from controlplane import checks
from controlplane.policies.checks import time_zones_are_the_same
from tests.factories import LimitFactory


def ids(found: list) -> list[str]:
    return [message.id for message in found if message.id.startswith("sluicegate.")]


def test_safe_settings_raise_nothing(settings):
    """The settings as they come are safe."""
    checks.refuse_unsafe_settings()

    assert ids(run_checks()) == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DEBUG", True, "sluicegate.E001"),
        ("SECRET_KEY", "", "sluicegate.E002"),
        ("SECRET_KEY", "short", "sluicegate.E002"),
        ("SECRET_KEY", "a" * 60, "sluicegate.E002"),
        ("SECRET_KEY", "django-insecure-" + "0123456789" * 5, "sluicegate.E002"),
        ("ALLOWED_HOSTS", ["*"], "sluicegate.E003"),
        ("ALLOWED_HOSTS", ["https://limits.example"], "sluicegate.E003"),
        ("ALLOWED_HOSTS", ["limits.example:8000"], "sluicegate.E003"),
        ("CSRF_TRUSTED_ORIGINS", ["limits.example"], "sluicegate.E006"),
        ("CSRF_TRUSTED_ORIGINS", ["https://limits.example/admin"], "sluicegate.E006"),
        ("REDIS_URL", "redis://127.0.0.1:99999/0", "sluicegate.E007"),
        ("REDIS_URL", "http://127.0.0.1/0", "sluicegate.E007"),
        ("STORE_PREFIX", "{sg}", "sluicegate.E007"),
        ("BROKER_URL", "redis+cluster://127.0.0.1", "sluicegate.E004"),
        ("BROKER_URL", "redis://127.0.0.1:port/0", "sluicegate.E004"),
        ("TRUSTED_PROXIES", ["10.0.0.0/33"], "sluicegate.E005"),
        ("METRICS_NETWORKS", ["here"], "sluicegate.E005"),
    ],
)
def test_an_unsafe_setting_is_an_error_with_a_remedy(settings, name, value, expected):
    """A server does not start with it, and says what to do."""
    setattr(settings, name, value)

    with pytest.raises(ImproperlyConfigured, match=expected):
        checks.refuse_unsafe_settings()

    found = [message for message in run_checks() if message.id == expected]
    assert found[0].hint


def test_debug_can_be_allowed(settings):
    """Whoever works on the code says so."""
    settings.DEBUG = settings.ALLOW_DEBUG = True

    checks.refuse_unsafe_settings()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("noeviction", []),
        ("volatile-ttl", ["sluicegate.W004"]),
        ("allkeys-lru", ["sluicegate.W004"]),
        ("volatile-lru", ["sluicegate.W004"]),
    ],
)
def test_a_store_that_evicts_is_warned_of(store, client_of_store, policy, expected):
    """Evicted counters admit too much, evicted documents lift limits."""
    client_of_store.config_set("maxmemory-policy", policy)
    try:
        assert ids(checks.store_keeps_documents()) == expected
    finally:
        client_of_store.config_set("maxmemory-policy", "noeviction")


def test_a_misspelt_variable_is_warned_of(monkeypatch):
    """Everything else ignores it."""
    monkeypatch.setenv("SLUICEGATE_HTTP", "true")

    (found,) = (it for it in run_checks() if it.id == "sluicegate.W007")

    assert (found.msg, found.hint) == (
        "SLUICEGATE_HTTP is no setting and has no effect.",
        "Did you mean SLUICEGATE_HTTPS?",
    )


@pytest.mark.django_db
def test_a_time_zone_of_the_host_is_warned_of():
    """A row of an earlier release may have one. It goes on, and a new one is refused."""
    limit = LimitFactory(window_seconds=None, calendar="day", time_zone="Europe/Berlin")
    assert time_zones_are_the_same() == []
    limit.time_zone = "localtime"
    limit.save()

    with pytest.raises(ValidationError, match="Must be the IANA name"):
        limit.clean()
    (found,) = time_zones_are_the_same()
    assert found.msg == f"{limit}: the time zone localtime may differ on each host."


@pytest.mark.parametrize(("appendonly", "expected"), [("yes", []), ("no", ["sluicegate.W006"])])
def test_a_store_that_forgets_at_a_restart_is_warned_of(store, client_of_store, appendonly, expected):
    """Documents come back from SQL; what was counted does not."""
    client_of_store.config_set("appendonly", appendonly)
    try:
        assert ids(checks.store_outlives_a_restart()) == expected
    finally:
        client_of_store.config_set("appendonly", "no")


def test_a_store_that_is_away_is_a_warning_only(settings):
    """The control plane works without it, and says once that it is not there."""
    found = [*checks.store_keeps_documents(), *checks.store_outlives_a_restart()]

    assert ids(found) == ["sluicegate.W005"]


def test_a_worker_says_at_its_start_that_the_store_evicts(store, client_of_store):
    """Nobody has to ask for it."""
    client_of_store.config_set("maxmemory-policy", "allkeys-lru")
    environment = {**os.environ, "SLUICEGATE_REDIS_URL": store.url, "DJANGO_SETTINGS_MODULE": "controlplane.settings"}
    command = [sys.executable, "-m", "celery", "-A", "controlplane", "worker", "--pool", "solo", "--loglevel", "INFO"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            said = next((line for line in run.stdout if "sluicegate.W004" in line or "ready" in line), "")
        finally:
            run.kill()
            client_of_store.config_set("maxmemory-policy", "noeviction")

    assert "maxmemory-policy allkeys-lru" in said
    assert "Set maxmemory-policy to noeviction." in said


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import controlplane.wsgi"],
        ["-c", "import controlplane.asgi"],
        ["-m", "celery", "-A", "controlplane", "worker"],
        ["-m", "celery", "-A", "controlplane", "beat"],
    ],
    ids=["wsgi", "asgi", "worker", "beat"],
)
def test_no_process_starts_with_an_unsafe_setting(settings, command):
    """Neither servers nor Celery heed Django's checks by themselves."""
    environment = {**os.environ, "SECRET_KEY": "short", "DJANGO_SETTINGS_MODULE": "controlplane.settings"}

    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 1
    assert "sluicegate.E002" in done.stderr
