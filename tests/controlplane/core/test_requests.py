"""The log tells which request wrote a line, and no secret."""

import json
import logging
from collections.abc import Callable, Iterator

import pytest
from django.db import OperationalError

from controlplane.objects.projects.models import Project
from enforcement.model import tokens
from tests.factories import TokenFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict]]]:
    """What the handler of the settings has written to the terminal, line by line."""
    (handler,) = (one for one in logging.getLogger().handlers if type(one) is logging.StreamHandler)
    text: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text.append(handler.format(record))

    keeping = Keeping()
    logging.getLogger().addHandler(keeping)
    yield lambda: [json.loads(line) for line in text]
    logging.getLogger().removeHandler(keeping)


def test_a_fault_is_found_by_the_id_of_its_reply(api, key, lines, monkeypatch):
    """The problem says that the log has its request id: the line with the traceback has it, and who asked."""
    monkeypatch.setattr(Project, "as_record", lambda self: 1 / 0)

    response = api("POST", "projects", {"slug": "chat", "name": "Chat"})

    (line,) = (line for line in lines() if line["level"] == "error")
    assert response.status_code == 500
    assert line["request_id"] == response.json()["request_id"] == response["X-Request-Id"]
    assert (line["actor"], line["channel"]) == (key.name, "api")
    assert "ZeroDivisionError" in line["exception"]


def test_every_line_of_a_request_has_its_id(api, lines, monkeypatch):
    """What a view itself logs, and the line about its answer; once each."""

    def fail(*_):
        raise OperationalError("database is locked")

    monkeypatch.setattr("controlplane.web.rest.projects.ProjectView.get_queryset", fail)

    api("GET", "projects", x_request_id="trace-1")

    assert [line["request_id"] for line in lines()] == ["trace-1", "trace-1"]


def test_a_request_does_not_leave_its_author_behind(api, call, lines):
    """The thread serves another one next."""
    api("GET", "projects/none")
    call("GET", "projects")

    first, second = lines()
    assert (first["actor"], "actor" in second) == ("ann", False)
    assert first["request_id"] != second["request_id"]


def test_the_admin_names_its_user(admin_client, lines):
    """A page that is not there, asked for by somebody who is logged in."""
    response = admin_client.get("/admin/nope/")

    (line,) = lines()
    assert (line["actor"], line["channel"]) == ("admin", "admin")
    assert line["request_id"] == response["X-Request-Id"]
    assert response["X-Request-Id"] in response.content.decode()


@pytest.mark.parametrize("secret", [tokens.mint("live"), tokens.mint("mgmt")], ids=["live", "mgmt"])
@pytest.mark.parametrize("written", [str, lambda text: text.replace("_", "%5F")], ids=["plain", "encoded"])
def test_a_secret_at_the_wrong_place_is_not_logged(api, lines, secret, written):
    """The request is refused, and its line keeps no more of the secret than people see of it."""
    assert api("GET", f"projects?token={written(secret)}").status_code == 400

    text = json.dumps(lines())
    assert written(secret) not in text
    assert secret[12:] not in text
    assert f"{written(secret[:12])}***" in text


def test_a_secret_in_a_traceback_is_not_logged(api, lines, monkeypatch):
    """Wherever in the line it is."""
    secret = TokenFactory().secret

    def fail(self):
        raise ValueError(f"cannot read {secret}")

    monkeypatch.setattr(Project, "as_record", fail)

    api("POST", "projects", {"slug": "chat", "name": "Chat"})

    assert secret[:12] in json.dumps(lines())
    assert secret not in json.dumps(lines())
