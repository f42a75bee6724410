"""Alerts by mail, over a real server on loopback."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from controlplane.core import environment
from controlplane.operations.webhooks import deliveries
from controlplane.operations.webhooks.models import Delivery
from tests.factories import DestinationFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

BODY = {"type": "test", "timestamp": "t", "data": {"title": "ci has reached 80 %", "text": "80 of 100 are used."}}


@dataclass
class MailServer:
    """A server that accepts each mail, or says *refusal* to the command that it begins with."""

    listener: socket.socket
    refusal: dict[str, str] = field(default_factory=dict)
    mails: list[bytes] = field(default_factory=list)

    def serve(self) -> None:
        with suppress(OSError):  # the listener is closed at the end of the test
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._handle, args=[connection], daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as lines, suppress(OSError):
            self._say(lines, "220 mail.example")
            while line := lines.readline():
                command = line[:4].decode().upper().strip()
                if command == "DATA" and command not in self.refusal:
                    self._say(lines, "354 go on")
                    self.mails.append(b"".join(iter(lines.readline, b".\r\n")))
                self._say(lines, self.refusal.get(command, "250 fine"))
                if command == "QUIT":
                    return

    @staticmethod
    def _say(lines, text: str) -> None:
        lines.write(f"{text}\r\n".encode())
        lines.flush()


@pytest.fixture
def mail_server(settings) -> Iterator[MailServer]:
    # The tests of Django keep mails in memory.
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings.EMAIL_HOST, settings.EMAIL_PORT = listener.getsockname()
        settings.DEFAULT_FROM_EMAIL = "sluicegate@example.org"
        server = MailServer(listener)
        threading.Thread(target=server.serve, daemon=True).start()
        yield server
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()


def send(message_id: str = "evt_1", **data: str) -> Delivery:
    destination = DestinationFactory(kind="email", url="", emails=["ops@example.org", "ann@example.org"])
    (delivery,) = deliveries.enqueue([destination], message_id, "test", {**BODY, "data": {**BODY["data"], **data}})
    deliveries.run()
    delivery.refresh_from_db()
    return delivery


def test_an_alert_is_a_mail(mail_server):
    """Its id is that of the event, also if it is sent again."""
    delivery = send()
    Delivery.objects.update(state="pending", next_at=timezone.now())
    deliveries.run()

    first, second = (message_from_bytes(mail, policy=policy.default) for mail in mail_server.mails)
    assert (delivery.state, delivery.result) == ("delivered", "The mail server has accepted the message.")
    assert (first["Subject"], first["From"]) == ("ci has reached 80 %", "sluicegate@example.org")
    assert first["To"] == "ops@example.org, ann@example.org"
    assert "80 of 100 are used." in first.get_content()
    assert first["Message-ID"] == second["Message-ID"] == "<evt_1@example.org>"


@pytest.mark.parametrize(
    ("command", "answer", "result"),
    [
        ("RCPT", "550 nobody secret-in-a-reply", "The mail server refuses the addresses."),
        ("MAIL", "550 not you secret-in-a-reply", "The mail server refuses the message or the account."),
        ("DATA", "451 later secret-in-a-reply", "The mail server refuses the message or the account."),
    ],
)
def test_a_refusal_is_said_and_tried_again(mail_server, command, answer, result):
    mail_server.refusal[command] = answer

    delivery = send()

    assert (delivery.state, delivery.result) == ("pending", result)


def test_a_mail_server_that_is_away_is_said(mail_server):
    mail_server.listener.shutdown(socket.SHUT_RDWR)
    mail_server.listener.close()

    assert send().result == "The mail server cannot be reached."


def test_a_title_starts_no_header(mail_server):
    """It is made of names that other people have chosen."""
    send(title="The model a\r\nBcc: eve@example.org has no price")

    mail = message_from_bytes(mail_server.mails[0], policy=policy.default)
    assert (mail["Subject"], mail["Bcc"]) == ("The model aBcc: eve@example.org has no price", None)


@pytest.mark.parametrize(
    ("emails", "code"),
    [
        ([], "emails"),
        ("ops@example.org", "emails"),
        (["ops"], "emails"),
        (["ops@example.org\nBcc: eve@example.org"], "emails"),
        ([5], "emails"),
        (["a@example.org"] * 21, "emails"),
    ],
)
def test_wrong_addresses_are_refused(api, store, mail_server, emails, code):
    ProjectFactory(slug="chat")

    answer = api("POST", "webhooks", {"name": "ops", "project": "chat", "kind": "email", "emails": emails})

    assert [(error["pointer"].split("/")[1], error["code"]) for error in answer.json()["errors"]] == [("emails", code)]


def test_without_a_mail_server_there_are_no_mails(api, store, settings):
    """Whoever adds one is told, and not when the first alert is lost."""
    settings.EMAIL_HOST = ""
    ProjectFactory(slug="chat")

    answer = api("POST", "webhooks", {"name": "o", "project": "chat", "kind": "email", "emails": ["a@example.org"]})

    assert answer.json()["errors"][0]["code"] == "no_mail_server"


def test_the_mail_server_is_read_from_its_variable(monkeypatch):
    monkeypatch.setenv("MAIL", "smtp+tls://ann:p%40ss@mail.example")

    assert environment.mail("MAIL") == {
        "EMAIL_HOST": "mail.example",
        "EMAIL_PORT": 587,
        "EMAIL_HOST_USER": "ann",
        "EMAIL_HOST_PASSWORD": "p@ss",
        "EMAIL_USE_TLS": True,
        "EMAIL_USE_SSL": False,
    }
    monkeypatch.delenv("MAIL")
    assert environment.mail("MAIL")["EMAIL_HOST"] == ""


@pytest.mark.parametrize("url", ["mail.example", "http://mail.example", "smtp://:secret@", "smtp://u:se/cret@h:1"])
def test_a_wrong_mail_server_is_refused_without_its_password(monkeypatch, url):
    monkeypatch.setenv("MAIL", url)

    with pytest.raises(ImproperlyConfigured, match=r"^MAIL: must have the form smtp\+tls") as raised:
        environment.mail("MAIL")
    assert "cret" not in str(raised.value)
