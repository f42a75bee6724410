import json
import logging

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import cache

PASSWORD = "correct horse battery staple"


def formatted(message: str, **fields: object) -> str:
    formatter = logging.getLogger().handlers and next(
        handler.formatter for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler
    )
    record = logging.LogRecord("controlplane", logging.INFO, __file__, 1, message, (), None)
    record.__dict__.update(fields)
    return formatter.format(record)


def test_a_log_line_is_one_json_object():
    """A program can read the log."""
    line = json.loads(formatted("Published revision 3"))

    assert (line["event"], line["level"], line["logger"]) == ("Published revision 3", "info", "controlplane")


def test_control_characters_do_not_reach_the_terminal():
    """What a client sent can neither fake a line nor steer the terminal."""
    line = formatted('slug\n{"event": "fake"}\x1b[2J\x9b\u2028')

    assert all(32 <= ord(character) < 127 for character in line)


def test_a_cache_that_is_away_is_a_miss():
    """No page fails because the store is away."""
    cache.set("a", 1)

    assert cache.get("a") is None


@pytest.fixture
def user(db):
    return get_user_model().objects.create_superuser("ann", password=PASSWORD)


def log_in(client, password: str):
    return client.post("/admin/login/", {"username": "ann", "password": password})


def test_guessing_passwords_is_locked_out_without_the_store(client, user):
    """Five failures lock the name out from that address, also while the store is away."""
    for _ in range(5):
        log_in(client, "wrong")

    assert log_in(client, PASSWORD).status_code == 429


def test_a_person_logs_in_without_the_store(client, user):
    """Sessions are in SQL."""
    assert log_in(client, PASSWORD).status_code == 302


def test_pages_carry_security_headers(client, db):
    """Set by the middleware, on every answer."""
    headers = client.get("/admin/login/").headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin"
