"""A change with an idempotency key: made once, answered as often as it is asked for."""

import json
from datetime import timedelta
from functools import partial

import pytest
from django.db import connection, transaction
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.web.restkit.idempotency.models import KeptAnswer
from controlplane.web.restkit.idempotency.tasks import prune_answers
from tests.controlplane.conftest import at_once
from tests.factories import ManagementKeyFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

CHAT = {"slug": "chat", "name": "Chat"}
TOKENS = "projects/chat/tokens"


def create(api, name: str = "a", body: dict = CHAT, path: str = "projects", **headers):
    return api("POST", path, body, idempotency_key=name, **headers)


def test_a_repetition_gets_the_first_response(api, store):
    """Body, status, address, ETag and revision are those of the change, which is made and audited once."""
    first = create(api)
    api("POST", "projects", {"slug": "later", "name": "Later"})

    again = create(api)

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    for header in ("ETag", "Location", "Sluicegate-Revision"):
        assert again[header] == first[header]
    assert "Idempotency-Replayed" not in first
    assert again["Idempotency-Replayed"] == "true"
    assert again["X-Request-Id"] != first["X-Request-Id"]
    assert AuditEntry.objects.filter(action="project.create", object_label="chat").count() == 1


def test_a_change_that_waited_for_the_store_names_its_revision_later(api, valkey, settings, store):
    """It was pending in the first response. The repetition knows more."""
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert create(api)["Sluicegate-Revision"] == "pending"

    assert create(api)["Sluicegate-Revision"] == "pending"
    settings.REDIS_URL = store.url
    api("POST", "projects", {"slug": "later", "name": "Later"})

    assert create(api)["Sluicegate-Revision"] == "1"


def test_every_kind_of_write_can_be_repeated(api, store):
    """A deletion that was repeated is no 404, and a replacement made long ago does not come back."""
    create(api)
    put = partial(api, "PUT", "projects/chat", {**CHAT, "name": "Two"}, idempotency_key="put")
    assert put().status_code == 200
    api("PATCH", "projects/chat", {"name": "Three"})
    assert put().json()["name"] == "Two"
    assert Project.objects.get().name == "Three"

    delete = partial(api, "DELETE", "projects/chat", idempotency_key="delete")
    assert [delete().status_code for _ in range(2)] == [204, 204]
    assert delete().content == b""


def test_a_secret_is_shown_once(api):
    """The token is the same, its secret is not kept anywhere."""
    ProjectFactory(slug="chat")

    first, again = (create(api, body={"name": "ci"}, path=TOKENS) for _ in range(2))

    secret = first.json()["secret"]
    assert again.json() == {**first.json(), "secret": None}
    assert Token.objects.count() == 1
    kept = KeptAnswer.objects.get()
    assert secret not in json.dumps([kept.body, kept.headers, kept.fingerprint])


def test_the_key_of_another_request_is_refused(api):
    """Another body, address or method would get a response that is not its own."""
    create(api)

    others = [
        create(api, body={**CHAT, "name": "Other"}),
        create(api, path="policies", body={"slug": "chat", "name": "Chat", "limits": []}),
        api("PATCH", "projects/chat", CHAT, idempotency_key="a"),
    ]

    for answer in others:
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert Project.objects.get().name == "Chat"
    assert not Policy.objects.exists()


def test_equal_json_is_one_request(api):
    """The order of members and white space mean nothing."""
    create(api)

    assert create(api, body='{ "name" : "Chat", "slug": "chat"}')["Idempotency-Replayed"] == "true"


def test_the_same_name_of_another_management_key_is_another_one(api, call):
    """Programs choose their names without knowing each other."""
    create(api)

    other = call("POST", "projects", {"slug": "two", "name": "Two"}, key=ManagementKeyFactory(), idempotency_key="a")

    assert (other.status_code, other.json()["slug"]) == (201, "two")


def test_a_failed_change_leaves_its_key_free(api):
    """Nothing was changed, so the corrected request may use it. A failure is worked out anew each time."""
    refused = create(api, body={"slug": "chat"})

    assert refused.status_code == 400
    assert create(api).status_code == 201


def test_a_change_that_breaks_off_leaves_nothing(api, monkeypatch):
    """Row, audit and kept response are one transaction."""
    monkeypatch.setattr(OpenChange, "created", lambda *args: 1 / 0)
    assert create(api).status_code == 500
    monkeypatch.undo()
    assert not Project.objects.exists()

    assert "Idempotency-Replayed" not in create(api)
    assert Project.objects.count() == 1


def test_keys_are_kept_for_a_day(api):
    """Then the name is free, whether or not it was pruned already."""
    create(api)
    row = KeptAnswer.objects.get()
    KeptAnswer.objects.update(created_at=row.created_at - timedelta(hours=23, minutes=59))
    assert prune_answers() == 0
    assert create(api)["Idempotency-Replayed"] == "true"

    KeptAnswer.objects.update(created_at=row.created_at - timedelta(hours=24))
    assert create(api).status_code == 400  # made again, and the slug is taken
    assert prune_answers() == 1


@pytest.mark.parametrize(("sent", "name"), [('"a b"', "a b"), ("8e03978e-40d5", "8e03978e-40d5"), (r'"a\"b"', 'a"b')])
def test_the_name_may_stand_in_quotes(api, sent, name):
    """As the draft of the IETF has it, or plain, as most clients send it."""
    assert create(api, sent).status_code == 201
    assert KeptAnswer.objects.get().name == name


@pytest.mark.parametrize("sent", ["", '""', "a b", '"a', "ä", "x" * 256, f'"{"x" * 256}"', '"\\a"'])
def test_a_name_that_is_none_is_refused(api, sent):
    """An ignored one would promise what is not kept."""
    answer = create(api, sent)

    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "invalid_idempotency_key")
    assert "Idempotency-Key" in answer.json()["detail"]
    assert not Project.objects.exists()


def test_questions_and_dry_runs_need_no_key(api):
    """They change nothing, so they run each time and keep nothing."""
    policy = PolicyFactory(slug="free")
    for method, path, body in [
        ("GET", "policies", None),
        ("POST", "preview", {"policy": policy.slug}),
        ("PATCH", "policies/free?dry_run=true", {"name": "Other"}),
    ]:
        assert api(method, path, body, idempotency_key="a").status_code == 200
    assert not KeptAnswer.objects.exists()


def test_who_may_no_longer_change_gets_no_kept_response(api, key):
    """Scopes are checked before anything is looked up."""
    create(api)
    key.scopes = ["projects:read"]
    key.save()

    assert create(api).status_code == 403


def test_who_may_see_less_now_gets_no_kept_response(api, key):
    """The response is about projects that the key does not reach any more. One that is deleted is none of them."""
    chat, other = ProjectFactory(slug="chat"), ProjectFactory(slug="other")
    create(api, body={"name": "ci"}, path=TOKENS)
    key.all_projects = False
    key.save()
    key.projects.set([chat, other])
    assert create(api, body={"name": "ci"}, path=TOKENS).json()["code"] == "key_limited_to_projects"

    create(api, "b", {"name": "ci"}, TOKENS)
    key.projects.set([chat])
    assert create(api, "b", {"name": "ci"}, TOKENS).status_code == 403
    other.delete()
    assert create(api, "b", {"name": "ci"}, TOKENS)["Idempotency-Replayed"] == "true"


def test_a_label_may_have_the_name_of_a_secret(api):
    """It is none, so a repetition shows it."""
    ProjectFactory(slug="chat")

    first, again = (create(api, body={"name": "ci", "labels": {"secret": "no"}}, path=TOKENS) for _ in range(2))

    assert again.json() == {**first.json(), "secret": None}


def test_a_merge_patch_is_another_request(api):
    """The same body says something else: its null takes a label away, and plain JSON refuses it."""
    token = TokenFactory(labels={"team": "red", "tier": "gold"})
    patch = partial(api, "PATCH", f"tokens/{token.pk}", {"labels": {"team": "blue"}}, idempotency_key="a")

    assert patch().json()["labels"] == {"team": "blue"}
    assert patch(content_type="application/merge-patch+json").json()["code"] == "idempotency_key_reused"


def test_twenty_at_once_make_one_object(web, key, store):
    """All of them get the response of the one that was first, at the latest when they ask again."""
    ProjectFactory(slug="chat")

    def until_answered() -> tuple[int, str]:
        while (answer := web("POST", TOKENS, {"name": "ci"}, key=key, Idempotency_Key="a")).status_code in (409, 503):
            pass
        return answer.status_code, answer.body["id"]

    answers = at_once([until_answered] * 20)

    assert set(answers) == {(201, Token.objects.get().pk)}


def test_a_running_request_is_not_waited_for(web, key):
    """A row that another transaction has locked says that it runs. SQLite has one writer, for which others wait."""
    if connection.vendor != "postgresql":
        pytest.skip("needs PostgreSQL, which locks rows: run `python -m tests.postgres`")
    KeptAnswer.objects.create(owner=key, name="a")
    with transaction.atomic():
        KeptAnswer.objects.select_for_update().get()
        answer = web("POST", "projects", CHAT, key=key, Idempotency_Key="a")

    assert (answer.status_code, answer.body["code"]) == (409, "request_running")
    assert answer.headers["Retry-After"] == "1"
    assert web("POST", "projects", CHAT, key=key, Idempotency_Key="a").status_code == 201


def test_what_follows_a_commit_is_not_waited_for_and_not_for_ever(api, key):
    """Meanwhile a repetition is told to wait. If its process was killed, a later one does it again."""
    create(api)
    asked = KeptAnswer.objects.get().fingerprint
    Project.objects.all().delete()
    KeptAnswer.objects.update(status=None, fingerprint=asked, created_at=timezone.now())
    assert create(api).json()["code"] == "request_running"

    KeptAnswer.objects.update(created_at=timezone.now() - timedelta(seconds=31))
    assert "Idempotency-Replayed" not in create(api)
    assert Project.objects.count() == 1


def test_a_token_is_rotated_once(api):
    """Without a key, too: of an overlap there would be a new live token for each repetition."""
    token = TokenFactory()
    rotate = partial(api, "POST", f"tokens/{token.pk}/rotate", {"overlap_seconds": 600})
    issued = rotate().json()["id"]

    again = rotate()

    assert (again.status_code, again.json()["code"]) == (409, "already_rotated")
    assert issued in again.json()["detail"]
    assert api("GET", f"tokens/{token.pk}").json()["replaced_by"] == issued
    assert Token.objects.count() == 2
