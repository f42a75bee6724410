"""``sluicegate usage``, ``top``, ``tail``, ``explain`` and ``completion``."""

import json
import subprocess
import sys
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from django.utils import timezone

from controlplane.traffic.usage.models import DeniedRequest, UsageRow
from enforcement.cli.remote import live_commands
from tests.factories import DeniedRequestFactory, LimitFactory, PolicyFactory, ProjectFactory, TokenFactory


@pytest.fixture
def token():
    return TokenFactory(project__slug="chat", name="ci")


def use(token, minutes, **numbers):
    at = timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=minutes)
    fields = {"project_id": token.project_id, "token_id": token.pk, "unit": "requests", "allowed": 0, "denied": 0}
    return UsageRow.objects.create(period="minute", at=at, **{**fields, **numbers})


@pytest.mark.parametrize(("columns", "each"), [("120", 1), ("60", 3)])
def test_usage_is_a_table_and_a_plot(cli, token, monkeypatch, columns, each):
    """It shows the whole range, also where nothing was counted. A narrow terminal sums neighbours up, and says so."""
    monkeypatch.setenv("COLUMNS", columns)
    for minutes, allowed in ((33, 4), (12, 8), (3, 1)):
        use(token, minutes, allowed=allowed, denied=int(minutes == 12), cost=allowed)
    found = cli("usage", "--project", "chat")
    allowed, denied = (line[len("allowed  ") :] for line in found.out.splitlines()[-2:])

    assert found.out.splitlines()[0].split() == ["at", "allowed", "denied", "would_deny", "cost"]
    assert allowed.split() == ["▄", "█", "▁", "at", "most", "8"]
    assert allowed.index("█") - allowed.index("▄") == 21 // each
    assert (denied.split(), denied.index("█")) == (["█", "at", "most", "1"], allowed.index("█"))
    assert ("A character of the plot is 3 minutes." in found.err) == (each == 3)


def test_usage_has_one_row_for_each_token(cli, token):
    """Summed up over all pages. As JSON, it has every row."""
    for minutes in range(1, 4):
        use(token, minutes, allowed=2)
    use(TokenFactory(project=token.project), 1, denied=1)

    assert cli("usage", "--by", "token").out.splitlines()[1].split() == [token.pk, "6", "0", "0", "0"]
    found = json.loads(cli("usage", "--json").out)
    assert (len(found["results"]), found["step"]) == (4, "minute")


def test_usage_has_one_row_for_each_limit(cli, token):
    """Which nobody has to ask for a second time. A row of all decisions is none of them."""
    limit = LimitFactory(policy__slug="free", name="per-minute")
    use(token, 1, allowed=9)
    use(token, 1, allowed=5, denied=4, policy_id=limit.policy_id, limit_name=limit.name)

    rows = cli("usage", "--by", "limit").out.splitlines()[1:]
    assert [row.split()[:3] for row in rows] == [["free/per-minute", "5", "4"]]


def test_a_wrong_range_is_refused_by_its_name(cli):
    """With the rule of the control plane, and exit status 2."""
    found = cli("usage", "--from", "yesterday")

    assert found.status == 2
    assert "from: Must be an RFC 3339 time with an offset" in found.err


def test_top_begins_with_who_is_denied_most(cli, token):
    """Once, if the output is no terminal."""
    busy = TokenFactory(project=token.project, name="busy")
    use(busy, 1, allowed=100)
    use(token, 1, allowed=1, denied=5)
    use(token, 1, token_id="tok_gone", denied=1)

    lines = cli("top").out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [[token.pk, "ci"], ["tok_gone", "0"], [busy.pk, "busy"]]
    assert lines[-1] == "3 tokens in the last 10 minutes. Usage arrives about a minute late."


def test_tail_says_that_it_is_a_sample(cli, token):
    """The oldest first, each in a line, whatever its values are."""
    now = timezone.now()
    DeniedRequestFactory(at=now - timedelta(seconds=9), project_id=token.project_id, token_id=token.pk)
    DeniedRequestFactory(at=now, project_id=token.project_id, token_id=token.pk, attributes={"ip": "\x1b[2J"})

    found = cli("tail", "--once")
    rows = [json.loads(line) for line in cli("tail", "--once", "--json").out.splitlines()]

    assert found.err.startswith("This is a sample. Most denials are not in it, so do not count them.")
    assert len(found.out.splitlines()) == 2
    assert "ip=\\x1b[2J" in found.out.splitlines()[1]
    assert rows[0]["at"] < rows[1]["at"]


def test_tail_shows_a_denial_that_arrives_late(cli, token, monkeypatch):
    """Proxies report at different times. What was there at the beginning is not shown later."""
    now = timezone.now()

    def denied(seconds):
        DeniedRequestFactory(at=now - timedelta(seconds=seconds), project_id=token.project_id, token_id=token.pk)

    def pause(seconds):
        if DeniedRequest.objects.count() > 3:
            raise KeyboardInterrupt
        denied(25)

    monkeypatch.setattr(live_commands, "time", SimpleNamespace(sleep=pause))
    for seconds in (10, 20, 30):
        denied(seconds)
    found = cli("tail", "-n", "1", "--json")

    shown = [datetime.fromisoformat(json.loads(line)["at"]) for line in found.out.splitlines()]
    assert [round((now - at).total_seconds()) for at in shown] == [10, 25]
    assert found.status == 130


def test_explain_asks_the_control_plane_if_one_is_known(cli, token, store):
    """By the id of a token, with its limits. The exit status says whether a request would pass."""
    token.policy = LimitFactory(policy=PolicyFactory(slug="free"), name="none", quota=0).policy
    token.save()
    from controlplane.releases.publishing import publisher

    publisher.publish_all()
    found = cli("explain", token.pk, "-a", "path=/v1")

    assert found.status == 1
    assert "free/none" in found.out
    assert cli("explain", token.pk, "--json").out.startswith("{")


@pytest.mark.parametrize("option", [["--store"], ["--redis", "redis://127.0.0.1:1/0"], ["--prefix=x:"]])
def test_explain_asks_the_store_if_an_option_names_it(cli, token, option, monkeypatch):
    """Which is away here, so that the error names it."""
    monkeypatch.setenv("SLUICEGATE_REDIS_URL", "redis://127.0.0.1:1/0")
    found = cli("explain", "sg_live_" + "x" * 30, *option)

    assert found.status in (1, 2)
    assert "control plane" not in found.err
    assert "api/v1" not in found.err


def test_a_decision_that_nobody_knows_is_an_error_with_its_field(cli, store):
    """As the control plane says it."""
    ProjectFactory()
    found = cli("explain", "dec_x")

    assert found.status == 2
    assert "decision: " in found.err


def test_a_shell_completes_commands_and_options(tmp_path):
    """Also those that have a parser of their own, by their names."""
    words = [sys.executable, "-m", "enforcement"]

    def completed(line):
        variables = {"_SLUICEGATE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        environment = {"PYTHONPATH": ":".join(sys.path), **variables}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert sorted(completed("sluicegate d")) == ["diff", "doctor"]
    assert "--prune" in completed("sluicegate apply --pr")
    script = subprocess.run([*words, "completion", "fish"], capture_output=True, text=True, check=True)
    assert "complete --command sluicegate" in script.stdout
