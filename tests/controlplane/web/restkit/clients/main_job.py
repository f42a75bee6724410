"""The main job by a generated client of Python: ``main_job.py URL KEY`` prints what it saw as JSON."""

import json
import sys

from sluicegate_client import AuthenticatedClient
from sluicegate_client.api.audit import audit_list
from sluicegate_client.api.overrides import overrides_create, overrides_destroy
from sluicegate_client.api.policies import policies_create, policies_partial_update, policies_retrieve
from sluicegate_client.api.projects import projects_create, projects_list, projects_update
from sluicegate_client.api.tokens import (
    projects_tokens_create,
    tokens_list,
    tokens_partial_update,
    tokens_revoke,
    tokens_rotate,
)
from sluicegate_client.models import (
    OverrideRequest,
    PatchedPolicyRequest,
    PatchedTokenRequest,
    PoliciesPartialUpdateDryRun,
    Policy,
    PolicyRequest,
    PolicyTrial,
    Problem,
    Project,
    ProjectReplacementRequest,
    ProjectRequest,
    ProjectsCreateDryRun,
    TokenRequest,
    Trial,
)

url, key = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key)
limit = {"name": "per-minute", "algorithm": "fixed_window", "quota": 60, "window_seconds": 60}

with client:
    policy = policies_create.sync(
        client=client, body=PolicyRequest.from_dict({"slug": "api", "name": "API", "limits": [limit]})
    )
    trial = projects_create.sync(
        client=client,
        body=ProjectRequest(slug="tried", name="Tried", policy="api"),
        dry_run=ProjectsCreateDryRun.TRUE,
    )
    trial_of_change = policies_partial_update.sync(
        client=client, slug="api", body=PatchedPolicyRequest(name="Tried"), dry_run=PoliciesPartialUpdateDryRun.TRUE
    )
    project = projects_create.sync(
        client=client, body=ProjectRequest(slug="chat", name="Chat", policy="api"), idempotency_key='"once"'
    )
    again = projects_create.sync_detailed(
        client=client, body=ProjectRequest(slug="chat", name="Chat", policy="api"), idempotency_key='"once"'
    )
    replaced = projects_update.sync("chat", client=client, body=ProjectReplacementRequest(name="Chat", policy="api"))
    taken = projects_create.sync(client=client, body=ProjectRequest(slug="chat", name="Chat"))
    tokens = [
        projects_tokens_create.sync("chat", client=client, body=TokenRequest(name=f"token-{i}")) for i in range(3)
    ]
    rotated = tokens_rotate.sync(tokens[0].id, client=client)
    renamed = tokens_partial_update.sync(tokens[1].id, client=client, body=PatchedTokenRequest(name="renamed"))
    revoked = tokens_revoke.sync(tokens[2].id, client=client)
    override = overrides_create.sync(
        client=client,
        body=OverrideRequest.from_dict(
            {"limit": "api/per-minute", "token": tokens[1].id, "quota": 90, "reason": "a launch"}
        ),
    )
    overrides_destroy.sync_detailed(override.id, client=client)
    seen = policies_retrieve.sync_detailed("api", client=client)
    stale = {"if_match": '"0"'}
    lost = policies_partial_update.sync(client=client, slug="api", body=PatchedPolicyRequest(name="x"), **stale)
    fresh = policies_partial_update.sync(
        client=client, slug="api", body=PatchedPolicyRequest(name="The API"), if_match=seen.headers["ETag"]
    )
    pages, cursor = [], None
    while True:
        page = tokens_list.sync(client=client, project="chat", page_size=2, **({"cursor": cursor} if cursor else {}))
        pages.append([token.name for token in page.results])
        if not (cursor := page.next_cursor):
            break
    audit = audit_list.sync(client=client, page_size=100)
    projects = projects_list.sync(client=client)

# A change answers with what it has done, or with what it would do.
assert isinstance(trial, Trial), trial
assert isinstance(trial_of_change, PolicyTrial), trial_of_change
assert isinstance(fresh, Policy), fresh
assert isinstance(replaced, Project), replaced
assert isinstance(taken, Problem), taken
assert isinstance(lost, Problem), lost
print(
    json.dumps(
        {
            "policy": [policy.slug, fresh.name, [limit.quota for limit in policy.limits]],
            "project": [project.slug, project.policy, again.headers.get("Idempotency-Replayed"), replaced.slug],
            "tried": [
                trial.dry_run,
                trial.status,
                trial.changed,
                [change.field for one in trial_of_change.diff for change in one.changes],
            ],
            "problems": [taken.status, lost.status],
            "secrets": [secret.startswith("sg_live_") for secret in (tokens[0].secret, rotated.secret)],
            "tokens": [renamed.name, revoked.revoked_at is not None, override.quota],
            "pages": pages,
            "actions": sorted({entry.action for entry in audit.results}),
            "projects": [one.slug for one in projects.results],
        }
    )
)
