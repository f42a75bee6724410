"""A file that is written while its rows are read ends when its reader may not see them any more."""

import http.client
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from datetime import timedelta

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.utils import timezone

from controlplane.changes.audit import export
from controlplane.core import files
from controlplane.core.files import AccessEnded, while_allowed
from controlplane.web.restkit import exports
from enforcement.embedded import free_port
from tests.factories import ManagementKeyFactory, MembershipFactory, ProjectFactory, UsageRowFactory

ROWS = 6


@pytest.fixture
def rows(db, monkeypatch):
    """Rows of usage of one project, in files of which every second line asks again."""
    monkeypatch.setattr(files, "CHECKED_LINES", 2)
    for room in (exports, export):
        monkeypatch.setattr(room, "AT_ONCE", 2)
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    project = ProjectFactory(slug="chat")
    for number in range(ROWS):
        UsageRowFactory(period="hour", at=hour - timedelta(hours=number + 1), project_id=project.pk)
    return project


def lines_after(response, deed) -> list[bytes]:
    """Read the first line of a file, do something, and read the others until it breaks off."""
    lines = iter(response.streaming_content)
    found = [next(lines)]
    deed()
    with pytest.raises(AccessEnded):
        found.extend(lines)
    return found


@pytest.mark.parametrize(
    "lose",
    [
        lambda user: user.memberships.filter(project__slug="chat").delete(),
        lambda user: User.objects.filter(pk=user.pk).update(is_active=False),
        lambda user: User.objects.filter(pk=user.pk).update(is_staff=False),
        lambda user: user.delete(),
    ],
    ids=["membership", "inactive", "no staff", "deleted"],
)
@pytest.mark.django_db(transaction=True)
def test_a_file_of_the_admin_breaks_off_when_its_reader_loses_access(client, rows, lose):
    """Of two projects, one is enough. No line follows that was read after it."""
    user = MembershipFactory(project=rows).user
    MembershipFactory(user=user)
    client.force_login(user)
    response = client.get("/admin/usage/usagerow/export.csv?period=hour")

    assert len(lines_after(response, lambda: lose(user))) == 1


@pytest.mark.parametrize(
    "lose",
    [
        lambda key: key.projects.set([ProjectFactory()]),
        lambda key: type(key).objects.filter(pk=key.pk).update(scopes=["projects:read"]),
        lambda key: type(key).objects.filter(pk=key.pk).update(revoked_at=timezone.now()),
        lambda key: key.delete(),
    ],
    ids=["project", "scope", "revoked", "deleted"],
)
@pytest.mark.django_db(transaction=True)
def test_a_file_of_rest_breaks_off_when_its_key_loses_access(call, rows, lose):
    key = ManagementKeyFactory(projects=[rows])
    response = call("GET", "usage/export?step=hour", key=key)

    assert len(lines_after(response, lambda: lose(key))) == 1


@pytest.mark.django_db(transaction=True)
def test_whoever_keeps_access_gets_the_whole_file(client, rows):
    """Other changes of roles break nothing, a deleted project was taken from nobody, and no row asks by itself."""
    member = MembershipFactory(project=rows)
    gone = MembershipFactory(user=member.user).project
    client.force_login(member.user)
    response = client.get("/admin/usage/usagerow/export.csv?period=hour")
    lines = iter(response.streaming_content)
    next(lines)
    member.role = "editor"
    member.save()
    gone.delete()

    assert len(list(lines)) == ROWS


def test_it_asks_again_after_some_lines_or_some_time():
    """A slow reader does not get the next line without a question, and a fast one is asked for some hundred."""
    asked, now = [], [0.0]

    def may_go_on():
        asked.append(now[0])
        return True

    lines = while_allowed(map(str, range(1_001)), "x", may_go_on, lambda: now[0])
    for _ in range(1_001):
        next(lines)
    assert asked == [0.0, 0.0]

    now[0] = 5.0
    lines = while_allowed(map(str, range(3)), "x", may_go_on, lambda: now[0])
    next(lines)
    now[0] = 6.5
    assert list(lines) == ["1", "2"]
    assert asked == [0.0, 0.0, 6.5]


# What the server in the test below serves.
BROKEN = """
import django
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
django.setup()
from django.core.handlers.wsgi import WSGIHandler
from django.urls import path
from controlplane.core.files import streamed
lines = [f"{number}\\n" for number in range(2_000)]
urlpatterns = [
    path("broken", lambda request: streamed(iter(lines), "x.csv", lambda: False)),
    path("whole", lambda request: streamed(iter(lines), "x.csv", lambda: True)),
]
application = WSGIHandler()
"""


@pytest.mark.proof
def test_a_client_sees_that_a_file_is_not_whole(tmp_path):
    """The server closes the connection without the end of the response."""
    (tmp_path / "broken.py").write_text(BROKEN)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "broken", "--workers", "1", "--threads", "2"]
    command += ["--bind", f"127.0.0.1:{port}", "--pythonpath", f"{tmp_path},{settings.BASE_DIR}"]
    server = subprocess.Popen(command, cwd=tmp_path)
    try:
        assert len(_read(port, "/whole").splitlines()) == 2_000
        with pytest.raises(http.client.IncompleteRead) as caught:
            _read(port, "/broken")
        assert len(caught.value.partial.splitlines()) < files.CHECKED_LINES
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def _read(port: int, address: str) -> bytes:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with closing(connection), suppress(ConnectionRefusedError):
            connection.request("GET", address)
            return connection.getresponse().read()
        time.sleep(0.1)
    raise AssertionError("The server does not start.")
