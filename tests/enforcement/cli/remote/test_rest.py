"""What a command does if it is interrupted, if nobody reads its output, and if its server is another program."""

import io
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.overrides.models import Override
from controlplane.objects.projects.models import Project
from enforcement.cli.remote import file_commands, live_commands
from tests.docs.tls import certificate
from tests.enforcement.cli.remote.test_file_commands import STEPS
from tests.factories import ManagementKeyFactory, ProjectFactory
from tests.repository import ROOT

PAGE = b'{"results": [], "next_cursor": null}'
SLUICEGATE = [sys.executable, "-m", "enforcement"]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_apply_that_is_interrupted_leaves_a_report(cli, chat_file, lossy, by):
    """As by Ctrl-C, or by a pipeline that ends its job. Another apply does all of it."""
    lossy.held = 1
    command = [*SLUICEGATE, "apply", "chat.yaml", "--yes", "--json"]
    with subprocess.Popen(
        command,
        env=environment(SLUICEGATE_URL=lossy.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whatever runs the tests in the background may ignore it, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert lossy.is_held.wait(60)
        process.send_signal(by)
        out, err = process.communicate(timeout=60)
    lossy.released.set()
    found = json.loads(out)

    titles = [[f"{step['action']} {step['kind']} {step['name']}" for step in found[name]] for name in ("done", "left")]
    assert (process.returncode, err, titles) == (130, "", [[], STEPS])
    assert found["problem"] == "Interrupted. It may have been made. Make a new plan, which shows whether it was."
    assert cli("apply", "chat.yaml", "--yes").status == 0
    assert cli("diff", "chat.yaml").status == 0


def test_a_reader_that_goes_away_stops_nothing(cli, chat_file):
    """As in ``2>&1 | head``."""
    line = f"({' '.join(SLUICEGATE)} apply chat.yaml --yes > out.txt; echo $? > status.txt) 2>&1 | :"
    subprocess.run(["bash", "-c", line], env=environment(), check=True)

    assert (chat_file.parent / "status.txt").read_text() == "0\n"
    (*_, last) = (chat_file.parent / "out.txt").read_text().splitlines()
    assert last == f"Done: {len(STEPS)} changes (revision pending)."
    assert Override.objects.filter(project__slug="chat").count() == 1


def test_an_export_is_a_file_in_any_terminal(cli, chat_file):
    """In UTF-8, and without the escapes that a terminal gets for what it cannot show."""
    chat_file.write_text(chat_file.read_text().replace("name: Chat", "name: Ünïcode 😀"), encoding="utf-8")
    cli("apply", "chat.yaml", "--yes")
    variables = environment(PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    done = subprocess.run([*SLUICEGATE, "export", "chat"], env=variables, capture_output=True, check=True)

    assert "name: Ünïcode 😀\n" in done.stdout.decode()


def test_a_question_that_is_not_answered_with_yes_changes_nothing(cli, chat_file, monkeypatch):
    """It ends as a problem, which no pipeline takes for success."""
    monkeypatch.setattr("io.StringIO", type("Terminal", (io.StringIO,), {"isatty": lambda self: True}))
    answers = {answer: cli("apply", "chat.yaml", stdin=answer) for answer in ("n\n", "", "yes please\n", "y\n")}

    assert [found.status for found in answers.values()] == [1, 1, 1, 0]
    assert answers["n\n"].err == "Apply this? [y/N]: Nothing was changed.\n"


def test_somebody_else_who_was_quicker_is_named(cli, chat_file, monkeypatch):
    """Between the plan and the first change, as while a person thinks. Nothing was changed then."""
    monkeypatch.setattr(file_commands, "confirm", lambda *args, **options: ProjectFactory(slug="chat"))
    found = cli("apply", "chat.yaml", "--yes")

    assert found.status == 3
    assert found.err == "Something was changed after the plan was made, so that nothing was done. Make a new plan.\n"


def test_a_plan_that_is_refused_at_once_has_changed_nothing(cli, chat_file, monkeypatch):
    """Which a pipeline need not tell from a wrong file."""
    monkeypatch.setenv("SLUICEGATE_KEY", ManagementKeyFactory(scopes=["projects:read", "policies:read"]).secret)
    file = chat_file.read_text()
    chat_file.write_text(file[: file.index("overrides:")])
    found = cli("apply", "chat.yaml", "--yes")

    assert (found.status, "403 insufficient_scope: project chat: This key" in found.err) == (2, True)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("tokens create nope arm", "There is no project nope."),
        ("tokens rotate tok_nope", "There is no token tok_nope."),
        ("tokens revoke tok_nope --yes", "There is no token tok_nope."),
        ("keys change mgk_nope --name x", "There is no management key mgk_nope."),
        ("keys revoke mgk_nope --yes", "There is no management key mgk_nope."),
        ("tokens list --status what", "'active', 'suspended', 'revoked', 'expired'"),
        ("login http://127.0.0.1 --key-stdin", "Must not be empty."),
    ],
)
def test_a_wrong_name_is_named(cli, command, says):
    """Which is not always a field of what is sent."""
    found = cli(*command.split())

    assert (found.status, says in found.err) == (2, True), found.err


NO_ROWS = b'{"results": [], "next_cursor": null}'
NOT_FOUND = b'{"status": 404, "code": "not_found", "detail": "Not found."}'


class Canned(BaseHTTPRequestHandler):
    """Answers with the next of the server's responses, and in the end again and again with the last one."""

    def do_GET(self) -> None:
        responses = self.server.responses  # type: ignore[attr-defined]
        status, content_type, body = responses.pop(0) if len(responses) > 1 else responses[0]
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(*responses: tuple[int, str, bytes], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Canned)
    server.responses = list(responses)  # type: ignore[attr-defined]
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_control_plane_that_cannot_apply_says_so(cli, chat_file, monkeypatch):
    """It is of an earlier release. Which one of both to upgrade is in the sentence."""
    with served((200, "application/json", NO_ROWS), (404, "application/problem+json", NOT_FOUND)) as url:
        monkeypatch.setenv("SLUICEGATE_URL", url)
        found = cli("plan", "chat.yaml")

    assert found.status == 2
    assert "This control plane cannot apply policy files. Upgrade it, or use an earlier command line." in found.err


COMMANDS = ("whoami", "tokens list", "usage", "tail --once", "top --once", "export chat", "diff chat.yaml", "keys list")


@pytest.mark.parametrize("command", COMMANDS)
def test_another_program_is_named(cli, chat_file, monkeypatch, command):
    """As at a wrong port. It may answer with a page, or with JSON of its own."""
    bodies = {b"{}": "application/json", b"[]": "application/json", b'{"results": 1}': "application/json"}
    for body, content_type in {b"<html>Welcome</html>": "text/html", **bodies}.items():
        with served((200, content_type, body)) as url:
            monkeypatch.setenv("SLUICEGATE_URL", url)
            found = cli(*command.split())

        assert found.status == 2, (body, found)
        assert f"{url} is no control plane of Sluicegate" in found.err
        assert found.err.endswith("Check the address.\n")


@pytest.mark.parametrize("rows", ["[{}]", "[1]", '[{"id": "x", "name": "y"}]'])
def test_rows_of_another_program_are_named(cli, monkeypatch, rows):
    """A list of something else, with status 200, is a sentence and no traceback."""
    with served((200, "application/json", f'{{"results": {rows}, "next_cursor": null}}'.encode())) as url:
        monkeypatch.setenv("SLUICEGATE_URL", url)
        found = cli("tokens", "list")

    assert (found.status, "Traceback" in found.err) == (2, False)
    assert f"{url} is no control plane of Sluicegate" in found.err


def test_a_certificate_of_an_own_authority_needs_a_variable(cli, monkeypatch, tmp_path):
    """The error says which, and the command works with it."""
    made, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    with served((200, "application/json", PAGE), tls=context) as url:
        monkeypatch.setenv("SLUICEGATE_URL", url)
        refused = cli("whoami")
        monkeypatch.setenv("SSL_CERT_FILE", str(made))
        trusted = cli("whoami")

    assert (refused.status, trusted.status) == (2, 0)
    assert "set SSL_CERT_FILE to the certificate of that authority" in refused.err


def test_a_key_that_cannot_be_used_says_what_to_do(cli, monkeypatch):
    """Also in the place of a login: it is wrong, lacks a scope, or is used from elsewhere."""
    lacking = ManagementKeyFactory(scopes=["audit:read"])
    elsewhere = ManagementKeyFactory(networks=["192.0.2.0/24"])
    found = {}
    for name, secret in (("unknown", "sg_mgmt_x"), ("lacking", lacking.secret), ("elsewhere", elsewhere.secret)):
        monkeypatch.setenv("SLUICEGATE_KEY", secret)
        found[name] = cli("tokens", "list")
    refused = cli("whoami")

    assert {one.status for one in found.values()} == {2}
    assert "Run `sluicegate login` with a key that is valid" in found["unknown"].err
    assert "This key lacks the scope tokens:read. `sluicegate keys list` shows the keys." in found["lacking"].err
    assert "This key may not be used from" in found["elsewhere"].err
    assert (refused.status, "This key may not be used from" in refused.err) == (1, True)


@pytest.mark.parametrize(
    "command",
    ["export ../tokens", "export chat?x=1", "export Chat", "tokens create ../x arm", "export chat/tokens"],
)
def test_a_slug_cannot_lead_to_another_address(cli, command):
    """Nothing is sent."""
    found = cli(*command.split(), "--trace")

    assert found.status == 2
    assert "Must be 1 to 63 lower-case letters, digits and hyphens" in found.err
    assert "/api/v1/" not in found.err


def test_tail_outlives_a_restart_of_the_control_plane(cli, monkeypatch):
    """It says once that it is away, and when it is back."""
    away = (503, "text/html", b"")
    monkeypatch.setattr(live_commands, "time", SimpleNamespace(sleep=stopping_after(4)))
    with served((200, "application/json", PAGE), *[away] * 4, (200, "application/json", PAGE)) as url:
        monkeypatch.setenv("SLUICEGATE_URL", url)
        found = cli("tail")

    assert found.status == 130
    assert found.err.count("Trying again until Ctrl-C.") == 1
    assert found.err.splitlines()[-1] == f"{url} is back."


def steps_of_the_workflow(event: str) -> list[str]:
    """Return the commands of the page's workflow that run on an event, after the installation."""
    page = (ROOT / "templates" / "docs" / "command-line.md").read_text()
    (text,) = re.findall(r"```yaml\n(on:\n.*?)\n```\n", page, re.DOTALL)
    steps = yaml.load(text, yaml.BaseLoader)["jobs"]["limits"]["steps"]
    runs = [(step.get("if", event), step["run"]) for step in steps if "run" in step]
    return [run for condition, run in runs if event in condition and not run.startswith("pip ")]


def test_the_workflow_plans_and_applies(cli, chat_file, lossy):
    """Its steps as the page has them, by the shell of GitHub Actions. A wrong file ends it, and nothing is changed."""
    (chat_file.parent / "limits").mkdir()
    chat_file.rename(chat_file.parent / "limits" / "chat.yaml")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = environment(PATH=path, GITHUB_STEP_SUMMARY="summary.md", GITHUB_SHA="0c0ffee")

    def run(event: str) -> list[int]:
        statuses = []
        for step in steps_of_the_workflow(event):
            done = subprocess.run(["bash", "-e", "-c", step], env=variables, capture_output=True, check=False)
            statuses.append(done.returncode)
            if done.returncode:
                break
        return statuses

    assert run("pull_request") == [0, 0]
    assert not Project.objects.exists()
    summary = Path("summary.md").read_text().splitlines()
    assert (summary[0], summary[2], summary[-1]) == ("```", "+ project chat", "```")
    assert run("push") == [0, 0]
    assert cli("diff", "limits/chat.yaml").status == 0
    assert AuditEntry.objects.first().reason == "0c0ffee"
    Path("limits/wrong.yaml").write_text("apiVersion: sluicegate/v1\n")
    assert run("pull_request") == run("push") == [1]


def stopping_after(count: int) -> Callable[[float], None]:
    """Return a pause that takes no time. The last one is Ctrl-C."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == count:
            raise KeyboardInterrupt

    return pause
