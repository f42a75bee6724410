"""More objects than one change should have: a job checks all of them, and then creates them in slices."""

import json

import pytest
from django.core.exceptions import ValidationError

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.operations.jobs import run
from controlplane.operations.jobs.models import Job, JobPart
from controlplane.releases.publishing.models import Revision
from controlplane.web.restkit.batches import jobs as batch_jobs
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = {"name": "per-minute", "algorithm": "fixed_window", "quota": 5, "window_seconds": 60}


class Killed(BaseException):
    """What ends a worker in the middle of a slice."""


def policies(count: int, prefix: str = "p") -> list[dict]:
    return [{"slug": f"{prefix}{number}", "name": "P", "limits": [LIMIT]} for number in range(count)]


def work_off(slices: int | None = None) -> None:
    """Run so many slices of all jobs, or all that there are."""
    if slices is None:
        run.run_all(600.0, pause=lambda seconds: None)
    for _ in range(slices or 0):
        assert run.run_next()


def found(api, response) -> dict:
    """Return the job that a response names, as it is now."""
    assert response.status_code == 202, response.content
    return api("GET", response["Location"].removeprefix("/api/v1/")).json()


@pytest.fixture
def few(monkeypatch):
    """A job creates more than 5 items, in parts of 3, of which a slice has one."""
    monkeypatch.setattr(batch_jobs, "MOST_ITEMS", 5)
    monkeypatch.setattr(run, "AT_ONCE", 3)
    monkeypatch.setattr(run, "SLICE_SECONDS", 0.0)


@pytest.mark.proof
def test_thousands_of_policies_are_created_by_a_job(api, store, document):
    """All are checked before the first is created. Each slice is one change of the key with one publication."""
    count = scale(1_001, 5_000)
    response = api("POST", "policies/batch", {"items": policies(count)}, X_Request_Id="many", Sluicegate_Reason="new")
    begun, job = response.json(), found(api, response)

    assert (response["Retry-After"], "Sluicegate-Revision" in response) == ("2", False)
    assert begun == job
    assert (job["title"], job["state"], job["total"]) == (f"Create {count:,} policies", "waiting", count)
    while not found(api, response)["result"].get("created"):
        assert not Policy.objects.exists()
        work_off(1)
    work_off()
    job = found(api, response)
    assert (job["state"], job["done"], job["error"]) == ("done", count, "")
    assert job["result"] == {"checked": count, "created": count, "invalid": 0, "errors": []}
    assert Policy.objects.count() == count
    written = AuditEntry.objects.filter(action="policy.create", actor="ann", request_id="many", reason="new")
    assert written.count() == count
    assert Revision.objects.count() == written.values("change").distinct().count() <= count / run.AT_ONCE + 1
    last = Policy.objects.get(slug=f"p{count - 1}")
    assert document(f"policy:{last.pk}")["limits"][0]["quota"] == 5
    assert not JobPart.objects.exists()


def test_wrong_items_are_named_and_nothing_is_created(api, few):
    """As by the response to a small batch, also for what only items of other parts show."""
    PolicyFactory(slug="there")
    items = policies(12)
    items[1] = {"slug": "p1", "name": "", "limits": [{**LIMIT, "quota": -1}], "nam": 1}
    items[4] = {**items[4], "slug": "p0"}
    items[6] = 6
    items[8] = {**items[8], "project": "none"}
    items[9] = {**items[9], "limits": [LIMIT, LIMIT]}

    response = api("POST", "policies/batch", {"items": [*items, {**items[0], "slug": "there"}]})
    work_off()
    job = found(api, response)

    assert (job["state"], job["done"]) == ("failed", 0)
    assert job["error"] == "6 items are not valid, of 13. Nothing was created."
    assert [(error["pointer"], error["code"]) for error in job["result"]["errors"]] == [
        ("#/items/1/name", "blank"),
        ("#/items/1/limits/0/quota", "invalid_limit"),
        ("#/items/1/nam", "unknown_field"),
        ("#/items/4/slug", "unique"),
        ("#/items/6", "invalid"),
        ("#/items/8/project", "does_not_exist"),
        ("#/items/9/limits", "rule"),
        ("#/items/12/slug", "unique"),
    ]
    assert (Policy.objects.count(), AuditEntry.objects.count(), JobPart.objects.count()) == (1, 0, 0)


@pytest.mark.parametrize("more", [5, 1], ids=["by a job", "at once"])
def test_what_is_wrong_with_one_item_hides_nothing_of_another(api, few, more):
    """Whoever mends all that is named can send the batch again, and nothing new comes up."""
    PolicyFactory(slug="there")
    items = policies(3, "q") + policies(more)
    items[0] = {"slug": "q0", "limits": []}
    items[1] = {**items[1], "slug": "q0"}
    items[2] = {**items[2], "slug": "there"}
    items[3] = {**items[3], "limits": [LIMIT, LIMIT]}
    response = api("POST", "policies/batch", {"items": items})
    errors = response.json().get("errors")
    if errors is None:
        work_off()
        errors = found(api, response)["result"]["errors"]

    assert [(error["pointer"], error["code"]) for error in errors] == [
        ("#/items/0/name", "required"),
        ("#/items/1/slug", "unique"),
        ("#/items/2/slug", "unique"),
        ("#/items/3/limits", "rule"),
    ]


def test_wrong_overrides_hide_no_other_rule(api, few, chat):
    """A misspelt limit, a rule of the model, one that is there already, and two of one limit."""
    there = OverrideFactory(limit=chat.policy.limits.get(name="l7"), token=None, project=chat)
    items = overrides(["l0", "l1", "none", "l7", "l0"], project="chat")
    items[1]["burst"] = 9
    response = api("POST", "overrides/batch", {"items": items})

    assert [(error["pointer"], error["code"]) for error in response.json()["errors"]] == [
        ("#/items/1/burst", "rule"),
        ("#/items/2/limit", "does_not_exist"),
        ("#/items/3/limit", "unique"),
        ("#/items/4/limit", "unique"),
    ]
    assert list(Override.objects.all()) == [there]


def test_only_the_first_errors_are_listed(api, few, monkeypatch):
    """All wrong items are counted."""
    monkeypatch.setattr(batch_jobs, "MOST_LISTED", 4)
    response = api("POST", "projects/batch", {"items": [{"slug": f"p{n}", "name": ""} for n in range(8)]})
    work_off()
    result = found(api, response)["result"]

    assert (result["invalid"], [error["pointer"] for error in result["errors"]]) == (
        8,
        [f"#/items/{place}/name" for place in range(4)],
    )


def test_a_killed_worker_creates_each_item_once(api, few, store, monkeypatch):
    """Nothing of the slice that it was at is kept, and the next worker does that one again."""
    api("POST", "policies/batch", {"items": policies(8)})
    work_off(4)  # three check, and one creates
    record_many = OpenChange.record_many

    def dies(*args) -> None:
        record_many(*args)
        raise Killed

    monkeypatch.setattr(OpenChange, "record_many", dies)
    with pytest.raises(Killed):
        run.run_next()
    monkeypatch.setattr(OpenChange, "record_many", record_many)

    assert (Policy.objects.count(), Job.objects.get().done) == (3, 3)
    work_off()
    assert Job.objects.get().state == "done"
    assert sorted(Policy.objects.values_list("slug", flat=True)) == [f"p{number}" for number in range(8)]
    assert AuditEntry.objects.filter(action="policy.create").count() == 8


def test_a_cancelled_job_leaves_what_it_has_created(api, few, store):
    """And none of the items."""
    response = api("POST", "policies/batch", {"items": policies(8)})
    work_off(4)

    assert api("DELETE", response["Location"].removeprefix("/api/v1/")).status_code == 204
    work_off()
    job = found(api, response)
    assert (job["state"], job["done"], job["result"]["created"]) == ("cancelled", 3, 3)
    assert (Policy.objects.count(), JobPart.objects.count()) == (3, 0)


def test_an_item_that_is_taken_meanwhile_ends_the_job(api, few, store):
    """It is named. What was created before stays, and a repetition finds that taken and skips nothing."""
    body = {"items": policies(8)}
    response = api("POST", "policies/batch", body)
    work_off(4)
    PolicyFactory(slug="p4")
    work_off()
    job = found(api, response)

    assert (job["state"], job["done"]) == ("failed", 3)
    assert job["error"] == "#/items/4/slug: Is taken already. 3 of 8 were created before, and stay."
    assert (job["result"]["created"], job["result"]["invalid"]) == (3, 1)
    assert (Policy.objects.count(), JobPart.objects.count()) == (4, 0)
    again = api("POST", "policies/batch", body)
    work_off()
    places = [error["pointer"] for error in found(api, again)["result"]["errors"]]
    assert places == [f"#/items/{place}/slug" for place in (0, 1, 2, 4)]


@pytest.mark.parametrize(
    "changes",
    [
        lambda key, other: ManagementKey.objects.filter(pk=key.pk).update(scopes=["policies:read"]),
        lambda key, other: key.projects.set([other]),
        lambda key, other: ManagementKey.objects.get(pk=key.pk).revoke(key.created_at),
        lambda key, other: ManagementKey.objects.filter(pk=key.pk).delete(),
        lambda key, other: Project.objects.get(slug="chat").delete(),
    ],
    ids=["scope", "project", "revoked", "deleted", "project deleted"],
)
def test_the_job_of_a_key_ends_when_the_key_may_not_do_it_any_more(call, few, store, changes):
    """Before it creates the next one. A limited key has its own slugs, and its job is seen by its own projects."""
    chat, other = ProjectFactory(slug="chat"), ProjectFactory(slug="other")
    key = ManagementKeyFactory(name="ci", scopes=["policies:write", "jobs:read"], projects=[chat])
    strangers = ManagementKeyFactory(scopes=["*"], projects=[other])
    items = [{**item, "project": "chat"} for item in policies(8, "chat--")]
    place = call("POST", "policies/batch", {"items": items}, key=key)["Location"]

    assert [call("GET", place, key=one).status_code for one in (key, strangers)] == [200, 404]
    work_off(4)
    before = Policy.objects.count()
    changes(key, other)
    work_off()
    job = Job.objects.get()
    assert (before, job.state, job.done, AuditEntry.objects.filter(action="policy.create").count()) == (
        3,
        "failed",
        3,
        3,
    )
    assert job.error == "The key ci may not do this any more. What was created until then stays."
    assert job.result["created"] == 3


def test_a_key_of_all_projects_that_is_revoked_creates_nothing(api, few, key):
    """Though its job concerns no project."""
    api("POST", "projects/batch", {"items": [{"slug": f"p{n}", "name": "P"} for n in range(8)]})
    key.revoke(key.created_at)
    work_off()

    assert (Job.objects.get().state, Project.objects.count()) == ("failed", 0)


def test_a_repetition_leads_to_the_same_job(api, few):
    """With the response of the first request."""
    body = {"items": policies(8)}
    first, again = (api("POST", "policies/batch", body, idempotency_key="a") for _ in range(2))
    other = api("POST", "policies/batch", {"items": policies(7)}, idempotency_key="a")

    assert (again.status_code, again["Idempotency-Replayed"], other.status_code) == (202, "true", 422)
    assert again.json() == first.json()
    assert [again[name] for name in ("Location", "Retry-After")] == [
        first[name] for name in ("Location", "Retry-After")
    ]
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    ("path", "items", "more", "status", "code", "says"),
    [
        ("policies/batch", 10_001, {}, 413, "too_many_items", "at most 10,000 items, got 10,001."),
        ("tokens/batch", 1_001, {}, 413, "too_many_items", "Only the response shows their secrets"),
        ("policies/batch?dry_run=true", 1_001, {}, 413, "too_many_items", "A dry run has at most 1,000 items"),
        ("policies/batch?wait=acknowledged", 1_001, {}, 400, "validation_error", "because a job creates them after"),
        ("policies/batch", 1_001, {"more": 1}, 400, "validation_error", "more: Unknown field."),
    ],
)
def test_what_no_job_does_is_refused_at_once(api, path, items, more, status, code, says):
    """With the reason, and without a job."""
    response = api("POST", path, {"items": [1] * items, **more})

    assert (response.status_code, response.json()["code"]) == (status, code)
    assert says in response.json()["detail"]
    assert not Job.objects.exists()


def test_a_thousand_are_created_at_once(api, few, store):
    """As before."""
    assert api("POST", "policies/batch", {"items": policies(5)}).status_code == 201


def test_a_batch_may_be_longer_than_other_bodies(api, store):
    """So many items of usual length do not fit into what one object may have."""
    items = [policy | {"description": "x" * 300} for policy in policies(5_000)]
    assert 2**20 < len(json.dumps({"items": items})) < 4 * 2**20

    assert found(api, api("POST", "policies/batch", {"items": items}))["total"] == 5_000

    response = api("POST", "policies/batch", {"items": items * 2})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert "at most 4194304 bytes" in response.json()["detail"]
    response = api("POST", "policies", policies(1)[0] | {"description": "x" * 2**20})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert "at most 1048576 bytes" in response.json()["detail"]


def test_projects_are_created_by_a_job(api, few, store):
    """With their policies."""
    PolicyFactory(slug="free")
    response = api(
        "POST", "projects/batch", {"items": [{"slug": f"p{n}", "name": "P", "policy": "free"} for n in range(8)]}
    )
    work_off()

    assert found(api, response)["state"] == "done"
    assert set(Project.objects.values_list("policy__slug", "version")) == {("free", 1)}
    assert Project.objects.count() == 8


def overrides(names: list[str], **holder) -> list[dict]:
    return [{"limit": f"free/{name}", **holder, "quota": 7, "reason": "x"} for name in names]


@pytest.fixture
def chat(store, monkeypatch) -> Project:
    """A project with eight limits, which may have five overrides."""
    monkeypatch.setattr("controlplane.objects.overrides.models.MAX_OVERRIDES", 5)
    policy = PolicyFactory(slug="free")
    for number in range(8):
        LimitFactory(policy=policy, name=f"l{number}")
    return ProjectFactory(slug="chat", policy=policy)


def test_overrides_are_created_by_a_job(api, few, chat):
    """One whose end has come is in nobody's way."""
    token = TokenFactory(project=chat)
    over = OverrideFactory(limit=chat.policy.limits.get(name="l0"), token=None, project=chat)
    Override.objects.filter(pk=over.pk).update(ends_at="2001-01-01T00:00:00Z")
    names = [f"l{number}" for number in range(5)]
    response = api(
        "POST", "overrides/batch", {"items": overrides(names, project="chat") + overrides(names, token=token.pk)}
    )
    work_off()

    assert found(api, response)["error"] == ""
    assert Override.objects.exclude(pk=over.pk).count() == 10
    assert set(Override.objects.values_list("created_by", flat=True)) == {"ann"}


def test_overrides_of_other_parts_count_before_one_is_created(api, few, chat):
    """Two of one limit and holder, and too many of one holder."""
    first = TokenFactory(project=chat)
    items = overrides(["l0", "l1", "l2", "l0"], project="chat") + overrides([f"l{n}" for n in range(6)], token=first.pk)
    response = api("POST", "overrides/batch", {"items": items})
    work_off()
    errors = found(api, response)["result"]["errors"]

    assert [(error["pointer"], error["code"]) for error in errors[:1]] == [("#/items/3/limit", "unique")]
    assert {error["pointer"] for error in errors[1:]} == {f"#/items/{place}" for place in range(4, 10)}
    assert not Override.objects.exists()


def test_a_failing_slice_leaves_the_progress_as_it_was(api, few, monkeypatch):
    """Though one of its parts was done."""
    api("POST", "policies/batch", {"items": policies(8)})
    work_off(4)

    record_many, calls = OpenChange.record_many, []

    def fails(*args) -> None:
        calls.append(args)
        record_many(*args)
        if len(calls) == 2:
            raise ValidationError("The audit is closed.")

    monkeypatch.setattr(run, "SLICE_SECONDS", 60.0)
    monkeypatch.setattr(OpenChange, "record_many", fails)
    work_off()
    job = Job.objects.get()

    assert (job.state, job.done, job.error, Policy.objects.count()) == ("failed", 3, "The audit is closed.", 3)
