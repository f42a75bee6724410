"""``POST /apply``: policy files become true by one change, or nothing is changed."""

import json
from copy import deepcopy
from time import monotonic
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.utils import timezone
from hypothesis import HealthCheck, given, settings

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project
from controlplane.operations.jobs import run
from controlplane.operations.jobs.models import Job
from controlplane.releases.publishing.models import Revision
from controlplane.web.rest import apply as rest_apply
from enforcement.cli.remote.screen import change_words
from tests.controlplane.conftest import at_once
from tests.enforcement.policy_files.test_policy_file import PHASES, shared_files
from tests.factories import LimitFactory, ManagementKeyFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

MINUTE = {"name": "per-minute", "algorithm": "sliding_window", "quota": 60, "window_seconds": 60}
FILE: dict[str, Any] = {
    "apiVersion": "sluicegate/v1",
    "project": {"slug": "chat", "name": "Chat", "policy": "chat--free"},
    "policies": [
        {"slug": "chat--burst", "limits": [{**MINUTE, "name": "per-second", "window_seconds": 1}]},
        {"slug": "chat--free", "name": "Free", "limits": [MINUTE]},
    ],
    "overrides": [{"limit": "chat--free/per-minute", "quota": 600, "reason": "launch week"}],
}
MARKED = {"managed_by": "chat.yaml"}


def with_quota(quota: int) -> dict[str, Any]:
    file = deepcopy(FILE)
    file["policies"][1]["limits"][0]["quota"] = quota
    return file


def with_limits(file: dict[str, Any], *limits: Any) -> dict[str, Any]:
    """The file with these limits of its second policy."""
    first, second = file["policies"]
    return {**file, "policies": [first, {**second, "limits": [*limits]}]}


def shared(**more: Any) -> dict[str, Any]:
    return {"apiVersion": "sluicegate/v1", "shared": True, **more}


@pytest.fixture
def apply(api):
    """``apply(file, state=...)``: one request, with the key that may do everything unless another one is given."""

    def send(*files: Any, call: Any = api, query: str = "", headers: dict[str, str] | None = None, **body: Any) -> Any:
        return call("POST", f"apply{query}", {"files": files, **body}, **(headers or {}))

    return send


@pytest.fixture
def by(call):
    """``by(scopes=...)``: requests with another key."""

    def of(**fields: Any) -> Any:
        key = ManagementKeyFactory(**fields)
        return lambda *words, **headers: call(*words, key=key, **headers)

    return of


def what(response: Any) -> list[tuple[str, str, str]]:
    return [(one["action"], one["type"], one["label"]) for one in response.json()["objects"]]


def errors(response: Any) -> dict[str, str]:
    assert response.status_code == 400, response.json()
    return {one["pointer"]: one["detail"] for one in response.json()["errors"]}


def test_a_file_becomes_true_by_one_change_and_one_publication(apply, store):
    """With one reason. The project and its policy name each other."""
    response = apply(FILE, options=MARKED, headers={"Sluicegate_Reason": "the new plan"})
    found = response.json()

    assert (response.status_code, response["Sluicegate-Revision"], found["revision"]) == (200, "1", 1)
    assert what(response) == [
        ("create", "project", "chat"),
        ("create", "policy", "chat--burst"),
        ("create", "policy", "chat--free"),
        ("create", "override", "chat--free/per-minute"),
    ]
    assert (found["changed"], found["counts"]) == (4, {"created": 4, "updated": 0, "deleted": 0})
    project = Project.objects.get()
    assert (project.policy.slug, project.policy.project, project.managed_by) == ("chat--free", project, "chat.yaml")
    assert Override.objects.get().quota == 600
    entries = AuditEntry.objects.order_by("pk")
    assert [*entries.values_list("action", flat=True)] == [
        *("policy.create", "policy.create", "project.create", "override.create"),
    ]
    assert entries.values("change").distinct().count() == Revision.objects.count() == 1
    assert {*entries.values_list("reason", "actor")} == {("the new plan", "ann")}
    assert entries.get(object_type="project").after["policy"] == project.policy_id


def test_the_second_apply_is_an_empty_change(apply, store):
    """Nothing is written, audited or published."""
    apply(FILE, options=MARKED)
    versions = [*Policy.objects.values_list("version", flat=True)]

    response = apply(FILE, options=MARKED)

    assert (response.status_code, response["Sluicegate-Revision"]) == (200, "1")
    assert (response.json()["changed"], response.json()["objects"], response.json()["revision"]) == (0, [], None)
    assert (AuditEntry.objects.count(), Revision.objects.count()) == (4, 1)
    assert [*Policy.objects.values_list("version", flat=True)] == versions


def test_a_change_is_said_in_lines_and_only_what_changes_is_written(apply):
    """A limit keeps its row, and the policy that stays its version."""
    apply(FILE, options=MARKED)
    limit = Limit.objects.get(name="per-minute").pk

    response = apply(with_quota(30), options=MARKED)

    assert what(response) == [("update", "policy", "chat--free")]
    assert response.json()["objects"][0]["changes"] == [
        {
            "part": "per-minute",
            "text": "",
            "field": "",
            "before": "60 requests per minute",
            "after": "30 requests per minute",
        }
    ]
    assert Limit.objects.get(quota=30).pk == limit
    assert [*Policy.objects.order_by("slug").values_list("version", flat=True)] == [1, 2]


def words(response: Any) -> list[str]:
    """Each line about the objects of a response, as a terminal shows it."""
    return [change_words(line) for one in response.json()["objects"] for line in one["changes"]]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {"quota": 100}, ["per-minute: 60 requests per minute -> 100 requests per minute"]),
        ({}, {"mode": "shadow"}, ["per-minute: Mode: enforced -> shadow (counted, never denied)"]),
        (
            {},
            {"name": "per-hour", "window_seconds": 3600},
            ["per-minute: removed: 60 requests per minute", "per-hour: added: 60 requests per hour"],
        ),
        ({"unit": "micros"}, {"unit": "micros", "quota": 5_000_000}, ["per-minute: 0.00006 USD", "5.00 USD"]),
    ],
)
def test_a_change_of_a_limit_is_said_in_words(apply, old, new, expected):
    """A line for each value, before and after."""
    file = {**FILE, "overrides": []}
    apply(with_limits(file, {**MINUTE, **old}))

    (line, *more) = words(
        apply(
            with_limits(file, {**MINUTE, **new}),
        )
    )

    assert line.startswith(expected[0])
    assert (more == expected[1:]) if len(expected[1:]) == len(more) else expected[1] in line


def test_a_new_object_is_said_in_full(apply):
    """Each field that is not as usual, since nobody has seen it before. A deletion says only of what."""
    limit = {**MINUTE, "name": "per-second", "partition_by": ["ip"], "match": {"methods": ["POST"]}, "mode": "shadow"}
    file = with_limits(FILE, MINUTE, limit)
    file["policies"][1]["metering"] = {"default_cap": 4096}

    created = apply(file, options=MARKED)
    deleted = apply(
        {"apiVersion": "sluicegate/v1", "project": {"slug": "chat", "name": "Chat"}},
        options={**MARKED, "prune": True, "prune_overrides": True},
    )

    assert words(created) == [
        *("Name: Chat", "Policy: chat--free", "Managed by: chat.yaml"),
        *("Managed by: chat.yaml", "per-second: 60 requests per second (sliding window)"),
        *("Default output cap: 4,096 tokens", "Name: Free", "Managed by: chat.yaml"),
        "per-minute: 60 requests per minute (sliding window)",
        "per-second: 60 requests per minute (sliding window), Counted per: token or project and ip, Methods: POST, "
        "Mode: shadow (counted, never denied)",
        *("600, never ends", "Reason: launch week", "Managed by: chat.yaml"),
    ]
    assert words(deleted) == ["Policy: chat--free -> none"]


def test_an_override_that_has_ended_is_not_made_again(apply):
    """The answer says that it can be removed from the file."""
    file = {**FILE, "overrides": [{**FILE["overrides"][0], "ends_at": "2020-11-30T00:00:00+01:00"}]}
    response = apply(file)

    assert [kind for _, kind, _ in what(response)] == ["project", "policy", "policy"]
    assert response.json()["stays"] == [
        "The override of chat--free/per-minute has ended at 2020-11-29T23:00:00Z. Remove it."
    ]


@settings(max_examples=10, deadline=None, phases=PHASES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shared_files(), shared_files())
def test_what_was_applied_does_not_differ_and_other_files_do(apply, one, other):
    """Whatever they say. The second file may leave policies of the first out, which stay."""
    for file in (one, other):
        chosen = file.chosen_global[0] if file.chosen_global else None
        file.chosen_global = file.chosen_global if chosen is None or chosen in file.policies else (None,)
    apply(shared(**{"global": None}), options={**MARKED, "prune": True})
    assert apply(one.as_values(), options=MARKED).status_code == 200

    same = apply(one.as_values(), options=MARKED, query="?dry_run=true").json()["result"]
    differing = apply(other.as_values(), options=MARKED, query="?dry_run=true").json()["result"]

    said = other.policies, other.chosen_global or one.chosen_global or (None,)
    has = {slug: one.policies.get(slug) for slug in other.policies}, one.chosen_global or (None,)
    assert (same["changed"], differing["changed"] > 0) == (0, said != has)


def test_a_dry_run_changes_nothing_and_reviews_policies(apply, store):
    """Its state is the one that the apply then finds."""
    apply(FILE, options=MARKED)
    response = apply(with_quota(30), options=MARKED, query="?dry_run=true")
    found = response.json()

    assert (response.status_code, found["dry_run"], found["changed"]) == (200, True, 1)
    assert found["result"]["objects"][0]["review"]["headline"].startswith("chat--free gets tighter")
    assert found["result"]["revision"] is None
    assert (Limit.objects.get(name="per-minute").quota, AuditEntry.objects.count(), Revision.objects.count()) == (
        60,
        4,
        1,
    )
    done = apply(with_quota(30), options=MARKED, state=found["result"]["state"])
    assert (done.status_code, done.json()["state"], done.json()["revision"]) == (200, found["result"]["state"], 2)


def test_a_plan_for_another_state_is_refused(apply, api, store):
    """The response has the present one."""
    apply(FILE)
    state = apply(with_quota(30), query="?dry_run=true").json()["result"]["state"]
    api("PATCH", "policies/chat--burst", {"name": "Other"})

    refused = apply(with_quota(30), state=state)
    again = apply(with_quota(30), state=refused.json()["state"])

    assert (refused.status_code, refused.json()["code"]) == (409, "plan_changed")
    assert refused.json()["state"] != state
    assert again.status_code == 200


def test_with_a_base_every_revision_counts(apply, store):
    """Also one that has changed something else."""
    assert apply(FILE, base=1).json()["code"] == "plan_changed"
    assert apply(FILE, base=0).status_code == 200
    assert apply(FILE, base=0).status_code == 409


def test_a_repeated_key_makes_it_once(apply, store):
    """The repetition gets the first response, with its revision. Another body with the key is refused."""
    headers = {"Idempotency_Key": "one"}
    first, second = (apply(FILE, headers=headers) for _ in range(2))

    assert (first.json(), second["Idempotency-Replayed"]) == (second.json(), "true")
    assert first.json()["revision"] == 1
    assert AuditEntry.objects.count() == 4
    assert apply(with_quota(30), headers=headers).json()["code"] == "idempotency_key_reused"


WRONG = [
    (("policies", 1, "limits", 0, "burst"), 5, "#/files/0/policies/1/limits/0/burst"),
    (("policies", 1, "limits", 0, "quota"), "many", "#/files/0/policies/1/limits/0/quota"),
    (("policies", 1, "slug"), "chat--burst", "#/files/0/policies/1/slug"),
    (("policies", 0, "name"), "x\u202e", "#/files/0/policies/0/name"),
    (("project", "policy"), "chat--none", "#/files/0/project/policy"),
    (("project", "token_policy"), "other", "#/files/0/project/token_policy"),
    (("overrides", 0, "limit"), "none/per-minute", "#/files/0/overrides/0/limit"),
    (("overrides", 0, "limit"), "empty/per-minute", "#/files/0/overrides/0/limit"),
    (("overrides", 0, "limit"), "shared/per-minute", "#/files/0/overrides/0/limit"),
    (("overrides", 0, "burst"), 700, "#/files/0/overrides/0/burst"),
    (("token_overrides",), [{"token": "tok_1", "limit": "chat--free/per-minute", "quota": 1, "reason": "x"}],
     "#/files/0/token_overrides/0/token"),
    (("global",), "chat--free", "#/files/0/global"),
    (("polices",), [], "#/files/0/polices"),
    (("apiVersion",), "sluicegate/v2", "#/files/0/apiVersion"),
]  # fmt: skip


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
@pytest.mark.parametrize(("path", "value", "pointer"), WRONG)
def test_an_error_names_its_place_in_the_file(apply, path, value, pointer, query):
    """Whether the file alone is wrong, or only with what there is. Nothing is changed."""
    PolicyFactory(slug="other", project=ProjectFactory(slug="sales"))
    PolicyFactory(slug="empty")
    LimitFactory(policy=PolicyFactory(slug="shared"), name="per-minute")
    file = deepcopy(FILE)
    node = file
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    if path[0] == "policies":
        del file["overrides"]

    assert list(errors(apply(file, query=query))) == [pointer]
    assert not Project.objects.filter(slug="chat").exists()


def test_all_that_is_wrong_is_named(apply):
    """In every file, also what two of them say of one object."""
    first, second = deepcopy(FILE), deepcopy(FILE)
    first["policies"][0]["limits"][0]["window_seconds"] = 0
    second["policies"][1]["extra"] = 1
    second["project"]["slug"] = "shop"

    found = errors(apply(first, second))

    assert list(found) == ["#/files/0/policies/0/limits/0/window_seconds", "#/files/1/policies/1/extra"]
    assert (
        "the policy chat--free is also in #/files/0"
        in errors(apply(FILE, {**FILE, "project": {"slug": "shop"}}))["#/files/1/policies/1/slug"]
    )


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"files": []}, "#/files"),
        ({"files": [7]}, "#/files/0"),
        ({"files": [FILE] * 101}, "#/files"),
        ({"files": [FILE], "options": {"prune": 1}}, "#/options/prune"),
        ({"files": [FILE], "options": {"mark": ""}}, "#/options/mark"),
        ({"files": [FILE], "base": -1}, "#/base"),
        ({"files": [FILE], "reason": "x"}, "#/reason"),
    ],
)
def test_a_body_of_another_form_is_refused(api, body, pointer):
    """As every body is."""
    assert list(errors(api("POST", "apply", body))) == [pointer]


def test_a_body_of_more_than_a_file_may_have_is_refused(api):
    """The bound is that of a file."""
    text = '{"files": ["' + "x" * 8 * 1_048_576 + '"]}'

    assert api("POST", "apply", text).json()["code"] == "body_too_large"


SCOPES = ["projects:read", "policies:read", "projects:write", "policies:write", "overrides:write", "tokens:read"]


@pytest.mark.parametrize(
    ("lacks", "title"),
    [
        ("projects:write", "project chat"),
        ("policies:write", "policy chat--burst"),
        ("overrides:write", "override chat--free/per-minute"),
    ],
)
def test_each_object_needs_the_scope_of_its_address(apply, by, lacks, title):
    """Without it nothing is changed, and a dry run says so beside what would be."""
    poor = by(scopes=[scope for scope in SCOPES if scope != lacks])

    refused, tried = apply(FILE, call=poor), apply(FILE, call=poor, query="?dry_run=true")

    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
    assert refused.json()["detail"] == f"{title}: This key lacks the scope {lacks}."
    assert f'scope="{lacks}"' in refused["WWW-Authenticate"]
    assert not Project.objects.exists()
    assert (tried.status_code, len(tried.json()["result"]["objects"])) == (200, 4)
    assert refused.json()["detail"] in tried.json()["result"]["stays"]


@pytest.mark.parametrize("lacks", ["policies:read", "projects:read", "tokens:read"])
def test_what_a_file_is_about_must_be_readable(apply, by, lacks):
    """Tokens only if the file names some."""
    poor = by(scopes=[scope for scope in SCOPES if scope != lacks])
    row = {"token": TokenFactory(project__slug="chat").pk, "limit": "chat--free/per-minute", "quota": 7, "reason": "x"}

    tried = apply({**FILE, "token_overrides": [row]}, call=poor, query="?dry_run=true")

    assert (tried.status_code, tried.json()["detail"]) == (403, f"This key lacks the scope {lacks}.")
    if lacks == "tokens:read":
        assert apply({**FILE, "token_overrides": []}, call=poor).status_code == 200


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
def test_a_limited_key_applies_the_file_of_its_project_only(apply, by, query):
    """Other projects are missing for it, and shared policies are not its own."""
    project = ProjectFactory(slug="chat", name="Chat")
    ProjectFactory(slug="shop")
    LimitFactory(policy=PolicyFactory(slug="free", is_global=True), name="per-minute", quota=5)
    limited = by(all_projects=False, projects=[project])

    assert apply(FILE, call=limited, query=query).status_code == 200
    shop = {"apiVersion": "sluicegate/v1", "project": {"slug": "shop"}}
    for file, title in (
        (shop, "project shop"),
        (shared(policies=[{"slug": "free", "name": "x", "limits": [MINUTE]}]), "policy free"),
        (shared(**{"global": None}), "policy free"),
        ({**FILE, "overrides": [{"limit": "free/per-minute", "quota": 7, "reason": "x"}]}, "override free/per-minute"),
        ({**FILE, "project": {**FILE["project"], "partition_cap": 7}}, "project chat"),
    ):
        refused = apply(file, call=limited, query=query)
        assert (refused.status_code, refused.json()["code"]) == (403, "key_limited_to_projects"), file
        assert refused.json()["detail"].startswith(f"{title}: ")
    foreign = {**FILE, "policies": [*FILE["policies"], {"slug": "shop--x", "limits": []}]}
    assert list(errors(apply(foreign, call=limited, query=query))) == ["#/files/0/policies/2/slug"]


def test_the_policy_of_another_project_is_not_taken(apply):
    """Slugs are unique, and a file only has policies of its own."""
    PolicyFactory(slug="chat--free")

    assert list(errors(apply(FILE))) == ["#/files/0/policies/1/slug"]
    assert not Project.objects.exists()


def test_what_is_in_no_file_stays_unless_it_is_pruned(apply):
    """A policy that no file has managed stays even then."""
    apply(FILE, options=MARKED)
    PolicyFactory(slug="chat--own", project=Project.objects.get())
    bare = {"apiVersion": "sluicegate/v1", "project": {"slug": "chat", "name": "Chat"}}

    kept = apply(bare, options=MARKED)
    pruned = apply(bare, options={**MARKED, "prune": True, "prune_overrides": True})

    assert what(kept) == [("update", "project", "chat")]
    assert "Policy chat--free is not in the file, and stays without --prune." in kept.json()["stays"]
    assert sorted(what(pruned)) == [
        ("delete", "override", "chat--free/per-minute"),
        ("delete", "policy", "chat--burst"),
        ("delete", "policy", "chat--free"),
    ]
    assert [*Policy.objects.values_list("slug", flat=True)] == ["chat--own"]
    assert AuditEntry.objects.filter(action="override.delete").count() == 1


def test_a_policy_that_is_used_cannot_be_pruned(apply):
    """The answer is the one of its own address, and all else stays too."""
    apply(FILE, options=MARKED)
    TokenFactory(project=Project.objects.get(), policy=Policy.objects.get(slug="chat--burst"))
    file = with_quota(30)
    del file["policies"][0]

    refused = apply(file, options={**MARKED, "prune": True})

    assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
    assert Limit.objects.get(name="per-minute").quota == 60


def test_the_shared_file_chooses_the_global_policy(apply):
    """Before the former one is deleted, and null chooses none."""
    PolicyFactory(slug="former", managed_by="shared.yaml", is_global=True)
    file = shared(**{"global": "everybody"}, policies=[{"slug": "everybody", "limits": [MINUTE]}])

    done = apply(file, options={"managed_by": "shared.yaml", "prune": True})

    assert done.status_code == 200, done.json()
    assert [*Policy.objects.values_list("slug", "is_global")] == [("everybody", True)]
    assert apply(file, options={"managed_by": "shared.yaml"}).json()["changed"] == 0
    assert apply({**file, "global": None}).json()["changed"] == 1
    assert not Policy.objects.filter(is_global=True).exists()


def test_overrides_of_tokens_are_created_changed_and_deleted(apply):
    """Many at once. A file that says nothing of them leaves them as they are."""
    apply(FILE)
    tokens = [TokenFactory(project=Project.objects.get()).pk for _ in range(3)]

    def rows(*quotas: int) -> dict[str, Any]:
        pairs = zip(tokens, quotas, strict=False)
        limit = {"limit": "chat--free/per-minute", "reason": "trial"}
        return {**FILE, "token_overrides": [{"token": token, "quota": quota, **limit} for token, quota in pairs]}

    assert apply(rows(7, 8, 9)).json()["counts"]["created"] == 3
    changed = apply(rows(7, 80))
    assert (changed.json()["counts"], len(changed.json()["stays"])) == ({"created": 0, "updated": 1, "deleted": 0}, 1)
    assert apply(FILE, options={"prune_overrides": True}).json()["changed"] == 0
    assert apply(rows(7), options={"prune_overrides": True}).json()["counts"]["deleted"] == 2
    assert [*Override.objects.exclude(token=None).values_list("token", "quota")] == [(tokens[0], 7)]
    actions = [*AuditEntry.objects.filter(object_type="override").order_by("pk").values_list("action", flat=True)]
    assert actions == ["override.create"] * 4 + ["override.update"] + ["override.delete"] * 2


def test_a_change_of_several_files_is_one(apply, store):
    """A project may use a shared policy of the same request."""
    free = shared(policies=[{"slug": "free", "limits": [MINUTE]}])
    chat = {"apiVersion": "sluicegate/v1", "project": {"slug": "chat", "policy": "free"}}

    assert apply(free, chat).json()["revision"] == 1
    assert Project.objects.get().policy.slug == "free"


def test_what_may_be_a_mistake_is_told(apply):
    """It is no error."""
    found = apply(shared(policies=[{"slug": "free", "limits": [{**MINUTE, "unit": "usd"}]}])).json()

    (told,) = found["warnings"]
    assert (told["policy"], told["limit"], told["field"]) == ("free", "per-minute", "unit")


KILLED = """
import json, os, signal
from django.test import Client
from controlplane.changes.change.transaction import OpenChange

record_many = OpenChange.record_many
def killed(self, action, changed):
    record_many(self, action, changed)
    if action == "{after}":
        os.kill(os.getpid(), signal.SIGKILL)

OpenChange.record_many = killed
headers = {{"Authorization": "Bearer {secret}", "Idempotency-Key": "a"}}
Client(SERVER_NAME="localhost").post("/api/v1/apply", {body}, content_type="application/json", headers=headers)
"""


@pytest.mark.parametrize("after", ["policy.create", "override.create"])
def test_a_kill_in_the_middle_leaves_nothing(apply, key, run_python, after, store):
    """The same request with its key then makes all of it."""
    code = KILLED.format(after=after, secret=key.secret, body=repr(json.dumps({"files": [FILE]})))
    assert run_python(code).wait(60) == -9

    assert [model.objects.count() for model in (Project, Policy, AuditEntry)] == [0, 0, 0]
    again = apply(FILE, headers={"Idempotency_Key": "a"})
    assert (again.status_code, again.json()["changed"], again.json()["revision"]) == (200, 4, 1)


@pytest.fixture
def few(monkeypatch):
    """A request that may change three objects, so that a file of four needs a job."""
    monkeypatch.setattr(rest_apply, "MOST_CHANGED", 3)


def test_more_than_a_request_should_change_is_a_job(apply, api, few, store):
    """It makes all by one change, for the key, with its reason. A dry run compares, and says that a job will do it."""
    tried = apply(FILE, query="?dry_run=true").json()
    assert (tried["status"], tried["changed"], tried["result"]["counts"]["created"]) == (202, 4, 4)
    assert tried["result"]["stays"] == [rest_apply.BY_A_JOB]

    state = tried["result"]["state"]
    response = apply(FILE, options=MARKED, state=state, headers={"Sluicegate_Reason": "the new plan"})
    assert (response.status_code, response.json()["kind"], response.json()["total"]) == (202, "apply", 4)
    assert Policy.objects.count() == 0
    run.run_all(60.0)

    job = api("GET", f"jobs/{response.json()['id']}").json()
    counts = {"created": 4, "updated": 0, "deleted": 0}
    assert (job["state"], job["done"], job["result"]["counts"]) == ("done", 4, counts)
    assert "objects" not in job["result"]
    assert Project.objects.get().managed_by == "chat.yaml"
    entries = AuditEntry.objects.all()
    assert entries.values("change").distinct().count() == Revision.objects.count() == 1
    assert {*entries.values_list("reason", "actor")} == {("the new plan", "ann")}


def test_a_change_by_a_job_cannot_be_waited_for(apply, few):
    response = apply(FILE, query="?wait=acknowledged")
    assert response.json()["errors"] == [{"parameter": "wait", "code": "rule", "detail": rest_apply.NO_WAIT}]
    assert not Job.objects.exists()


def test_more_than_a_job_should_change_is_refused(apply, few, monkeypatch):
    monkeypatch.setattr(rest_apply, "MOST_IN_A_JOB", 3)
    response = apply(FILE)
    assert (response.status_code, response.json()["code"]) == (413, "too_many_items")
    assert not Job.objects.exists()


def _takes_the_slug(key: ManagementKey) -> None:
    PolicyFactory(slug="chat--free", project=ProjectFactory(slug="other"))


def _changes_the_state(key: ManagementKey) -> None:
    ProjectFactory(slug="chat")


def _revokes_the_key(key: ManagementKey) -> None:
    ManagementKey.objects.filter(pk=key.pk).update(revoked_at=timezone.now())


@pytest.mark.parametrize(
    ("before", "error", "code"),
    [
        (_takes_the_slug, "#/files/0/policies/1/slug: ", "validation_error"),
        (_changes_the_state, "Something was changed after the plan was made", "plan_changed"),
        (_revokes_the_key, "The key ann may not do this any more. Nothing was changed.", None),
    ],
)
def test_a_job_that_cannot_make_all_makes_nothing(apply, key, few, before, error, code):
    state = "" if before is _takes_the_slug else apply(FILE, query="?dry_run=true").json()["result"]["state"]
    apply(FILE, **({"state": state} if state else {}))
    before(key)
    run.run_all(60.0)

    job = Job.objects.get()
    assert (job.state, job.done, job.result.get("code")) == ("failed", 0, code)
    assert job.error.startswith(error)
    assert not Policy.objects.filter(slug="chat--burst").exists()
    assert not AuditEntry.objects.exists()


def test_a_job_keeps_a_policy_that_is_used_by_then(apply, few):
    """Its error says who uses it."""
    apply(FILE, options=MARKED)
    run.run_all(60.0)
    less = {**FILE, "policies": [], "project": {"slug": "chat"}, "overrides": []}
    apply(less, options={**MARKED, "prune": True, "prune_overrides": True})
    TokenFactory(policy=Policy.objects.get(slug="chat--burst"), project=Project.objects.get())
    run.run_all(60.0)

    job = Job.objects.first()
    assert (job.state, Policy.objects.count()) == ("failed", 2)
    assert "is still used by" in job.error


def many_projects(count: int) -> list[dict[str, Any]]:
    """Files of *count* objects."""
    slugs = [f"chat-{at}" for at in range(count // 500)]
    policies = {slug: [{"slug": f"{slug}--{at}", "limits": [MINUTE]} for at in range(499)] for slug in slugs}
    return [
        {"apiVersion": "sluicegate/v1", "project": {"slug": slug, "name": slug}, "policies": some}
        for slug, some in policies.items()
    ]


@pytest.mark.proof
def test_a_job_of_thousands_ends_before_the_time_limit_of_a_task(apply):
    """Its small sibling is the job of four objects."""
    count = rest_apply.MOST_IN_A_JOB
    assert apply(*many_projects(count)).status_code == 202
    began = monotonic()
    run.run_all(1.0)

    took = monotonic() - began
    job = Job.objects.get()
    assert (job.state, job.done, Policy.objects.count()) == ("done", count, count // 500 * 499)
    assert took < django_settings.CELERY_TASK_SOFT_TIME_LIMIT


def test_of_two_at_once_one_makes_the_change(apply, web, key):
    """The other one finds it made, or is refused and has changed nothing."""

    def send() -> Any:
        return web("POST", "apply", {"files": [FILE]}, key=key)

    answers = at_once([send, send])

    assert {answer.status_code for answer in answers} <= {200, 409}
    assert AuditEntry.objects.count() == 4
    changed = sorted(answer.body["changed"] for answer in answers if answer.status_code == 200)
    assert changed in ([4], [0, 4])
