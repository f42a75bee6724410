"""One request to an address that was checked, whatever the other side does."""

import socket
import time

import pytest

from controlplane.operations.webhooks.connecting import Unreachable, post
from controlplane.operations.webhooks.targets import Refused, networks
from tests.controlplane.operations.webhooks.conftest import LOOPBACK
from tests.docs.tls import certificate, terminator

ALLOWED = networks(LOOPBACK)


def send(receiver, **options):
    return post(receiver.url, {"Content-Type": "application/json"}, b"{}", **{"allowed": ALLOWED, **options})


def test_a_request_is_sent_and_its_status_returned(receiver):
    assert send(receiver) == 204

    (request,) = receiver.requests
    assert request.line == "POST /hook HTTP/1.1"
    assert request.body == b"{}"
    assert request.headers["host"] == receiver.url.split("/")[2]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 500 Oops\r\n\r\n", 500),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", 302),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n" + b"x" * 100_000, 200),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzzz", 200),
    ],
)
def test_a_redirect_is_not_followed_and_no_body_is_read(receiver, answer, status):
    receiver.answers = [answer]

    assert send(receiver) == status
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed before a response"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 1_000 + b"\r\n", "not HTTP"),
    ],
)
def test_what_is_no_response_is_said_in_a_sentence(receiver, answer, reason):
    """Without anything that the other side has written."""
    receiver.answers = [answer]

    with pytest.raises(Unreachable, match=reason) as raised:
        send(receiver)
    assert "SSH" not in str(raised.value)


@pytest.mark.parametrize("behaviour", ["hang", "drip"])
def test_a_slow_receiver_keeps_nobody_for_longer(receiver, behaviour):
    """Even one that sends each byte in time."""
    receiver.answers = [getattr(receiver, behaviour)]
    began = time.monotonic()

    with pytest.raises(Unreachable, match=r"within 0\.2 seconds"):
        send(receiver, seconds=0.2)
    assert time.monotonic() - began < 20


def test_a_name_is_resolved_once_and_that_address_is_connected_to(receiver):
    """A second answer would lead elsewhere."""
    asked = []
    port = int(receiver.url.split(":")[2].split("/")[0])

    def resolve(host, port, **options):
        asked.append(host)
        first = "127.0.0.1" if len(asked) == 1 else "10.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (first, port))]

    assert post(f"http://hook.example:{port}/", {}, b"", allowed=ALLOWED, resolve=resolve) == 204
    assert asked == ["hook.example"]
    assert receiver.requests[0].headers["host"] == f"hook.example:{port}"


@pytest.mark.parametrize("second", ["10.0.0.1", "169.254.169.254", "::ffff:10.0.0.1"])
def test_a_name_with_one_private_address_is_refused(receiver, second):
    """Nothing is sent, also not to the other address."""
    port = int(receiver.url.split(":")[2].split("/")[0])

    def resolve(host, port, **options):
        family = socket.AF_INET6 if ":" in second else socket.AF_INET
        pairs = [(socket.AF_INET, "127.0.0.1"), (family, second)]
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in pairs]

    with pytest.raises(Refused):
        post(f"http://hook.example:{port}/", {}, b"", allowed=ALLOWED, resolve=resolve)
    assert receiver.requests == []


def test_without_the_setting_nothing_is_sent_to_loopback(receiver):
    for url in (receiver.url, receiver.url.replace("127.0.0.1", "localhost"), receiver.url.replace("http", "https")):
        with pytest.raises(Refused):
            post(url, {}, b"")
    assert receiver.requests == []


def test_a_name_that_does_not_exist_is_said():
    def resolve(host, port, **options):
        raise socket.gaierror("no such name")

    with pytest.raises(Unreachable, match="cannot be resolved"):
        post("https://nowhere.example/", {}, b"", resolve=resolve)


def test_a_port_where_nobody_listens_is_said(receiver):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

        with pytest.raises(Unreachable, match="cannot be connected to"):
            post(f"http://127.0.0.1:{port}/", {}, b"", allowed=ALLOWED)


def test_a_certificate_is_verified(receiver, tmp_path, monkeypatch):
    """One that the system does not trust is refused before anything is sent."""
    made, key = certificate(tmp_path)
    with terminator(int(receiver.url.split(":")[2].split("/")[0]), made, key) as port:
        url = f"https://127.0.0.1:{port}/hook"

        with pytest.raises(Unreachable, match="certificate"):
            post(url, {}, b"{}", allowed=ALLOWED)
        assert not any(request.line for request in receiver.requests)
        monkeypatch.setenv("SSL_CERT_FILE", str(made))
        assert post(url, {}, b"{}", allowed=ALLOWED) == 204
