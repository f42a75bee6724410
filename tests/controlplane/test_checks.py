import os
from pathlib import Path

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured, ValidationError

from controlplane import checks
from controlplane.objects.policies.checks import time_zones_are_the_same
from tests.controlplane import forks
from tests.controlplane.stack.running import eventually
from tests.factories import LimitFactory

SETTINGS = "controlplane.settings"


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


def started(folder: Path, *command: str, **environment: str) -> tuple[forks.Process, Path]:
    """Start a process of the control plane; return it, and the file that it writes to."""
    with (folder / "output").open("wb") as output:
        process = forks.start(command, {**os.environ, "DJANGO_SETTINGS_MODULE": SETTINGS, **environment}, output)
    return process, folder / "output"


def test_a_worker_says_at_its_start_that_the_store_evicts(store, client_of_store, tmp_path):
    """Nobody has to ask for it."""
    client_of_store.config_set("maxmemory-policy", "allkeys-lru")
    command = ["-m", "celery", "-A", "controlplane", "worker", "--pool", "solo", "--loglevel", "INFO"]
    run, output = started(tmp_path, *command, SLUICEGATE_REDIS_URL=store.url)
    try:
        assert eventually(lambda: run.poll() or "sluicegate.W004" in (text := output.read_text()) or "ready" in text)
    finally:
        run.kill()
        run.wait()
        client_of_store.config_set("maxmemory-policy", "noeviction")

    assert "maxmemory-policy allkeys-lru" in output.read_text()
    assert "Set maxmemory-policy to noeviction." in output.read_text()


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
def test_no_process_starts_with_an_unsafe_setting(tmp_path, command):
    """Neither servers nor Celery heed Django's checks by themselves."""
    run, output = started(tmp_path, *command, SECRET_KEY="short")

    assert run.wait(60) == 1
    assert "sluicegate.E002" in output.read_text()
