"""``sluicegate plan`` and ``apply``: a file becomes true, and nothing stays half done in silence."""

import json
from typing import Any

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.core.text import unprintable
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project
from controlplane.operations.jobs import run
from controlplane.operations.jobs.models import Job
from controlplane.web.rest import apply as rest_apply
from enforcement.cli import main
from enforcement.cli.remote.files import applying
from enforcement.cli.remote.rest import ControlPlane
from enforcement.policy_files.fields import HIDDEN
from tests.controlplane.conftest import at_once
from tests.enforcement.cli.remote.conftest import FILE
from tests.factories import LimitFactory, ManagementKeyFactory, PolicyFactory, ProjectFactory

STEPS = [
    *("create project chat", "create policy chat--burst", "create policy chat--free"),
    "create override chat--free/per-minute",
]


def quota(name="per-minute"):
    return Limit.objects.get(name=name).quota


def test_an_applied_file_is_what_an_export_writes(cli, chat_file):
    """Character by character, but for the comment that names the schema. A diff is then empty, and a plan too."""
    assert cli("apply", "chat.yaml", "--yes").status == 0
    exported = cli("export", "chat").out.partition("\n")

    assert exported[0].startswith("# yaml-language-server: $schema=http://")
    assert exported[2] == FILE
    assert cli("diff", "chat.yaml").out == "No difference.\n"
    assert cli("plan", "chat.yaml").out.splitlines()[1] == "Nothing to change."
    assert cli("apply", "chat.yaml", "--json").status == 0


def test_what_a_file_describes_is_marked(cli, chat_file):
    """With the path as it was given, or what the person says. The audit has the reason."""
    cli("apply", "chat.yaml", "--yes", "--reason", "the new plän")

    assert {*Policy.objects.values_list("managed_by", flat=True), Project.objects.get().managed_by} == {"chat.yaml"}
    assert {entry.reason for entry in AuditEntry.objects.all()} == {"the new plän"}

    cli("apply", "chat.yaml", "--yes", "--managed-by", "git.example/limits")
    assert {*Policy.objects.values_list("managed_by", flat=True)} == {"git.example/limits"}


def test_nothing_is_marked_if_a_person_says_so(cli, chat_file):
    """As for a file that is applied once."""
    cli("apply", "chat.yaml", "--yes", "--no-mark")

    assert Project.objects.get().managed_by == ""
    assert cli("plan", "chat.yaml", "--no-mark").out.splitlines()[1] == "Nothing to change."


def test_a_plan_says_what_changes_and_changes_nothing(cli, chat_file):
    """In words, with what the control plane says of each policy."""
    cli("apply", "chat.yaml", "--yes")
    chat_file.write_text(FILE.replace("quota: 60\n", "quota: 30\n").replace("mode: shadow", "mode: enforce"))

    shown = cli("plan", "chat.yaml").out

    assert (
        "~ policy chat--free\n    per-minute: 60 requests per minute -> 30 requests per minute\n"
        "    per-month: Mode: shadow (counted, never denied) -> enforced\n" in shown
    )
    assert "free gets tighter" in shown
    assert "Plan: 0 to create, 1 to change, 0 to delete." in shown
    assert quota() == 60
    assert cli("diff", "chat.yaml").status == 1


def test_nobody_can_be_asked_without_a_terminal(cli, chat_file):
    """So the option that says yes is required, and nothing is changed without it."""
    found = cli("apply", "chat.yaml")

    assert found.status == 2
    assert "--yes" in found.err
    assert not Project.objects.exists()


def test_what_is_not_in_the_file_stays_unless_it_is_pruned(cli, chat_file):
    """And a policy that no file managed stays even then."""
    cli("apply", "chat.yaml", "--yes")
    PolicyFactory(slug="chat--own", project=Project.objects.get())
    chat_file.write_text(FILE.split("policies:")[0].replace("  policy: chat--free\n", ""))

    kept = cli("apply", "chat.yaml", "--yes")
    number = Policy.objects.count(), Override.objects.count()
    cli("apply", "chat.yaml", "--yes", "--prune", "--prune-overrides")

    assert "Policy chat--burst is not in the file, and stays without --prune." in kept.err
    assert number == (3, 1)
    assert [policy.slug for policy in Policy.objects.all()] == ["chat--own"]
    assert not Override.objects.exists()


def test_a_saved_plan_is_refused_after_a_change(cli, chat_file, api):
    """Exit status 3 says that nothing was done."""
    cli("apply", "chat.yaml", "--yes")
    chat_file.write_text(FILE.replace("quota: 60\n", "quota: 30\n"))
    cli("plan", "chat.yaml", "--out", "plan.json")
    api("PATCH", "policies/chat--burst", {"name": "Other"})

    found = cli("apply", "--plan", "plan.json", "--yes")

    assert (found.status, quota()) == (3, 60)
    assert found.err == "Something was changed after the plan was made, so that nothing was done. Make a new plan.\n"


def test_a_saved_plan_is_applied_without_its_file(cli, chat_file, api):
    """Changes elsewhere do not matter, as tokens of other projects are issued all the time."""
    cli("plan", "chat.yaml", "--out", "plan.json")
    chat_file.unlink()
    api("POST", "projects", {"slug": "shop", "name": "Shop"})

    assert cli("apply", "--plan", "plan.json", "--yes").status == 0
    assert quota() == 60


def test_with_a_base_every_revision_counts(cli, chat_file, store, api):
    """For who wants nothing to have happened at all."""
    assert cli("apply", "chat.yaml", "--yes", "--base", "1").status == 3
    assert cli("apply", "chat.yaml", "--yes", "--base", "0").status == 0


def test_a_plan_of_an_earlier_command_line_is_made_anew(cli, tmp_path):
    """It names states in another way. The exit status is that of any plan that is too old."""
    (tmp_path / "plan.json").write_text('{"format": "sluicegate-plan/1"}')
    found = cli("apply", "--plan", "plan.json", "--yes")

    assert (found.status, found.err) == (
        3,
        "The plan is of an earlier command line. Nothing was changed. Make a new plan.\n",
    )


@pytest.mark.parametrize("text", ["{}", "[", '{"format": "sluicegate-plan/2"}', "\x00"])
def test_a_file_that_is_no_plan_is_refused(cli, tmp_path, text):
    """In one sentence."""
    (tmp_path / "plan.json").write_text(text)
    found = cli("apply", "--plan", "plan.json", "--yes")

    assert found.status == 2
    assert found.err.startswith("sluicegate apply: Must be a file that `sluicegate plan --out` has written")


def test_of_two_applies_at_once_one_is_refused(cli, chat_file, monkeypatch):
    """Both are of the same plan, which is made once and whole."""
    cli("apply", "chat.yaml", "--yes")
    chat_file.write_text(FILE.replace("quota: 60\n", "quota: 30\n").replace("quota: 10\n", "quota: 20\n"))
    cli("plan", "chat.yaml", "--out", "one.json")
    cli("plan", "chat.yaml", "--out", "two.json")
    before = AuditEntry.objects.count()

    statuses = at_once(
        [lambda name=name: main(["apply", "--plan", name, "--yes"]) for name in ("one.json", "two.json")]
    )

    assert sorted(statuses) == [0, 3]
    assert (quota(), quota("per-second"), AuditEntry.objects.count()) == (30, 20, before + 2)


def test_a_plan_tells_scripts_and_a_diff_sees_the_same(cli, chat_file):
    """A mark that is missing is a change. The exit statuses are those of Terraform, in which an error is not 2."""
    cli("apply", "chat.yaml", "--yes", "--no-mark")
    plan, diff = cli("plan", "chat.yaml", "--detailed-exitcode"), cli("diff", "chat.yaml")

    assert (plan.status, diff.status, cli("plan", "chat.yaml").status) == (2, 1, 0)
    assert "Managed by: admin and API -> chat.yaml" in diff.out
    assert "Managed by: admin and API -> chat.yaml" in plan.out
    assert cli("plan", "chat.yaml", "--no-mark", "--detailed-exitcode").status == 0
    assert cli("diff", "chat.yaml", "--no-mark").status == 0
    assert cli("plan", "none.yaml", "--detailed-exitcode").status == 1
    assert cli("plan", "--detailed-exitcode").status == 1


def test_a_lost_response_makes_no_change_twice(cli, chat_file, lossy, monkeypatch):
    """The change is sent again with its idempotency key, and gets the response that was lost."""
    monkeypatch.setenv("SLUICEGATE_URL", lossy.url)
    lossy.responses = {1, 2}

    assert cli("apply", "chat.yaml", "--yes").status == 0
    assert AuditEntry.objects.count() == len(STEPS)
    assert cli("diff", "chat.yaml").status == 0


def test_a_control_plane_that_limits_its_callers_is_waited_for(cli, chat_file, lossy, monkeypatch):
    """As long as its response says, so that a large file is not left half applied."""
    monkeypatch.setenv("SLUICEGATE_URL", lossy.url)
    lossy.limited = {0, 2, 3}

    assert cli("apply", "chat.yaml", "--yes").status == 0
    assert AuditEntry.objects.count() == len(STEPS)


def test_a_server_that_is_away_leaves_a_report(cli, chat_file, lossy, monkeypatch):
    """It says what may have been done. Nothing is ever done by half, and another apply does all of it."""
    monkeypatch.setenv("SLUICEGATE_URL", lossy.url)
    lossy.away_from = 1
    report = cli("apply", "chat.yaml", "--yes", "--json")
    found = json.loads(report.out)
    lossy.away_from = None

    titles = [[f"{step['action']} {step['kind']} {step['name']}" for step in found[name]] for name in ("done", "left")]
    assert (report.status, titles, Project.objects.count()) == (4, [[], STEPS], 0)
    assert "It may have been made. Make a new plan, which shows whether it was." in found["problem"]
    assert cli("apply", "chat.yaml", "--yes").status == 0
    assert cli("diff", "chat.yaml").status == 0


def test_a_key_that_may_not_write_one_object_changes_none(cli, chat_file, monkeypatch):
    """The plan says which one, and so does the problem."""
    scopes = ["projects:read", "projects:write", "policies:read", "overrides:write", "tokens:read"]
    monkeypatch.setenv("SLUICEGATE_KEY", ManagementKeyFactory(scopes=scopes).secret)

    planned, found = cli("plan", "chat.yaml"), cli("apply", "chat.yaml", "--yes")

    assert (planned.status, found.status, Project.objects.count()) == (0, 2, 0)
    for one in (planned, found):
        assert "policy chat--burst: This key lacks the scope policies:write." in one.err


@pytest.mark.parametrize(
    ("field", "slug", "says"),
    [
        ("policy", "chat--none", "There is no policy chat--none."),
        ("token_policy", "other", "Must not be a policy of another project."),
    ],
)
def test_a_plan_names_a_policy_that_the_project_cannot_have(cli, chat_file, field, slug, says):
    """Before anything is changed."""
    PolicyFactory(slug="other", project=ProjectFactory(slug="sales"))
    chat_file.write_text(FILE.replace("  policy: chat--free\n", f"  {field}: {slug}\n"))

    for words in (["plan", "chat.yaml"], ["apply", "chat.yaml", "--yes"]):
        found = cli(*words)
        assert (found.status, f"project.{field}: {says}" in found.err) == (2, True), found.err
    assert not Project.objects.filter(slug="chat").exists()


def test_a_policy_of_somebody_else_is_not_taken(cli, chat_file):
    """A plan finds that out before anything is changed."""
    PolicyFactory(slug="chat--free")
    found = cli("apply", "chat.yaml", "--yes")

    assert (found.status, Project.objects.count()) == (2, 0)
    reason = "Must be another slug, because this one is of a policy that is elsewhere."
    assert f"chat.yaml:24: policies[1].slug: {reason}" in found.err


@pytest.mark.parametrize("taken", [False, True])
def test_many_new_policies_take_few_requests(cli, chat_file, taken):
    """A request for each took more than a minute for a large file."""
    policies = "".join(f"  - slug: chat--{index}\n    limits: []\n" for index in range(30))
    chat_file.write_text(f"apiVersion: sluicegate/v1\nproject: {{slug: chat}}\npolicies:\n{policies}")
    if taken:
        PolicyFactory(slug="chat--29")
    found = cli("plan", "chat.yaml", "--trace")

    assert found.err.count(" /api/v1/") == 2
    assert ("policies[29].slug: Must be another slug" in found.err) == taken == bool(found.status)


def test_a_plan_that_was_undone_is_made_again(cli, chat_file):
    """Its changes are not taken for those that were made before."""
    cli("plan", "chat.yaml", "--out", "plan.json")
    cli("apply", "--plan", "plan.json", "--yes")
    Project.objects.get().delete()
    Override.objects.all().delete()

    assert cli("apply", "--plan", "plan.json", "--yes").status == 0
    assert Project.objects.count() == 1


def test_a_key_that_only_reads_can_plan(cli, chat_file, monkeypatch):
    """The control plane tries the change for it. What the key may not do is said beside the plan."""
    cli("apply", "chat.yaml", "--yes")
    chat_file.write_text(FILE.replace("quota: 60\n", "quota: 30\n"))
    reader = ManagementKeyFactory(scopes=["projects:read", "policies:read"])
    monkeypatch.setenv("SLUICEGATE_KEY", reader.secret)

    found = cli("plan", "chat.yaml")
    assert "60 requests per minute -> 30 requests per minute\nPlan: " in found.out
    assert "policy chat--free: This key lacks the scope policies:write." in found.err


@pytest.fixture
def worker(monkeypatch):
    """A control plane whose requests may change three objects, and a worker that does its jobs before anybody looks."""
    monkeypatch.setattr(rest_apply, "MOST_CHANGED", 3)
    monkeypatch.setattr(applying, "JOB_PAUSE", 0.0)
    get = ControlPlane.get

    def get_after_work(self: ControlPlane, path: str, **query: Any) -> Any:
        if path.startswith("jobs/"):
            run.run_all(60.0)
        return get(self, path, **query)

    monkeypatch.setattr(ControlPlane, "get", get_after_work)


def test_a_job_is_followed_to_its_end(cli, chat_file, worker):
    ended = cli("apply", chat_file, "--yes")
    assert (ended.status, ended.out.splitlines()[-1]) == (0, "Done: 4 changes.")
    assert cli("diff", chat_file).out.splitlines()[-1] == "No difference."


def test_a_job_that_fails_has_changed_nothing(cli, chat_file, worker, monkeypatch):
    monkeypatch.setattr(rest_apply, "write", lambda *args: 1 / 0)
    ended = cli("apply", chat_file, "--yes")
    assert (ended.status, Policy.objects.count()) == (2, 0)
    assert "has ended as failed. Nothing was changed. An error of the server." in ended.err


def test_an_error_of_a_job_has_its_place_in_the_file(cli, chat_file, worker, monkeypatch):
    """As if the request had been refused. The exit status tells scripts that the plan is too old."""
    start = run.start

    def start_late(*args: Any, **fields: Any) -> Job:
        job = start(*args, **fields)
        PolicyFactory(slug="chat--burst", project=ProjectFactory(slug="other"))
        return job

    monkeypatch.setattr(run, "start", start_late)
    ended = cli("apply", chat_file, "--yes")
    assert ended.status == 2
    assert f"{chat_file}:7: policies[0].slug: " in ended.err


def test_a_job_for_a_state_that_is_over_makes_nothing(cli, chat_file, worker, monkeypatch):
    start = run.start

    def start_late(*args: Any, **fields: Any) -> Job:
        job = start(*args, **fields)
        ProjectFactory(slug="chat")
        return job

    monkeypatch.setattr(run, "start", start_late)
    ended = cli("apply", chat_file, "--yes")
    assert (ended.status, Policy.objects.count()) == (3, 0)


def test_a_job_that_the_key_may_not_read_is_named(cli, chat_file, worker, monkeypatch):
    scopes = ["projects:read", "projects:write", "policies:read", "policies:write", "overrides:write", "tokens:read"]
    key = ManagementKeyFactory(scopes=scopes)
    monkeypatch.setenv("SLUICEGATE_KEY", key.secret)
    ended = cli("apply", chat_file, "--yes")
    assert ended.status == 4
    assert f"The job {Job.objects.get().pk} makes it, and cannot be read: 403" in ended.err


def test_a_wrong_file_changes_nothing(cli, chat_file):
    """And no request is sent."""
    chat_file.write_text(FILE.replace("quota: 60\n", "quota: sixty\n"))
    found = cli("apply", "chat.yaml", "--yes", "--trace")

    assert found.status == 2
    assert found.err == (
        "sluicegate apply: chat.yaml:32: policies[1].limits[0].quota: Must be an integer from 0 to 9007199254740991, "
        "got 'sixty'.\n"
    )


def test_shared_policies_are_a_file_of_their_own(cli, tmp_path):
    """Which has no project."""
    LimitFactory(policy=PolicyFactory(slug="free", name="Free"), name="per-minute", quota=5)
    PolicyFactory(slug="chat--own", project=ProjectFactory(slug="chat"))

    assert cli("export", "--shared", "--out", "shared.yaml").status == 0
    text = (tmp_path / "shared.yaml").read_text()
    (tmp_path / "shared.yaml").write_text(text.replace("quota: 5", "quota: 6"))

    assert "shared: true" in text
    assert "chat--own" not in text
    assert cli("apply", "shared.yaml", "--yes").status == 0
    assert quota() == 6


def test_a_limited_key_plans_without_a_base_revision(cli, chat_file, call, monkeypatch, key):
    """It may not read revisions. What it may not write is refused by the control plane."""
    project = ProjectFactory(slug="chat", name="Chat")
    limited = ManagementKeyFactory(all_projects=False, projects=[project])
    monkeypatch.setenv("SLUICEGATE_KEY", limited.secret)

    assert cli("plan", "chat.yaml").out.startswith("project chat, base revision unknown\n")
    assert cli("apply", "chat.yaml", "--yes").status == 0
    assert cli("diff", "chat.yaml").status == 0


def test_names_cannot_control_the_terminal(cli, chat_file):
    """A row of an older version may have such a name. It is shown, and obeyed by nothing."""
    ProjectFactory(slug="chat", name="Chat")
    Project.objects.update(name="x\x1b[2J\u202e[red]y")

    shown = cli("diff", "chat.yaml").out

    assert "Name: x\\x1b[2J\\u202e[red]y -> Chat" in shown


def test_an_undo_is_shown_before_it_is_made(cli, chat_file, store):
    """The revision is that of the last change."""
    cli("apply", "chat.yaml", "--yes")
    chat_file.write_text(FILE.replace("quota: 60\n", "quota: 30\n"))
    revision = json.loads(cli("apply", "chat.yaml", "--yes", "--json").out)["revision"]

    tried = cli("undo", revision, "--reason", "too tight", "--dry-run")
    between = quota()
    undone = cli("undo", revision, "--reason", "too tight", "--yes")

    assert "chat--free" in tried.out
    assert (between, undone.status, quota()) == (30, 0, 60)


def test_the_command_line_refuses_the_characters_that_the_control_plane_refuses():
    """Both have the rule, as the command does without the control plane."""
    differ = [code for code in range(0x110000) if bool(HIDDEN.match(chr(code))) != bool(unprintable(chr(code)))]

    assert differ == []


def test_the_undo_of_an_unknown_revision_says_so(cli, chat_file):
    """A person has mistyped a number, and not an address."""
    found = cli("undo", "9999", "--reason", "a mistake", "--yes")

    assert (found.status, "There is no revision 9999." in found.err) == (2, True)
