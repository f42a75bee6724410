"""What a header or a body asks of a change is done, or the change is refused. Nothing of it is ignored."""

import gzip

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from tests.factories import PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

WHEN = "Sat, 01 Jan 2050 00:00:00 GMT"


@pytest.mark.parametrize("resource", ["projects", "policies", "tokens", "overrides"])
def test_a_batch_has_no_condition(api, resource):
    """Its objects have no version. A client that sends one learns that nothing protects its change."""
    ProjectFactory(slug="chat")

    response = api("POST", f"{resource}/batch", {"items": [{}]}, if_match='"proj_1-1"')

    problem = response.json()
    assert (response.status_code, problem["code"]) == (400, "header_not_supported")
    assert problem["detail"].startswith("The header If-Match is not checked here")
    assert api("GET", problem["type"]).status_code == 200


@pytest.mark.parametrize("sent", ['"*"', "nonsense", "", '"a" b', "*, *"])
def test_a_wrong_if_none_match_replaces_nothing(api, sent):
    """It names no object, so that every object would be replaced that was meant to stay."""
    PolicyFactory(slug="free", name="Free")

    response = api("PUT", "policies/free", {"name": "Other", "limits": []}, if_none_match=sent)

    assert (response.status_code, response.json()["code"]) == (400, "header_not_supported")
    assert Policy.objects.get().name == "Free"


def test_a_time_beside_a_tag_is_ignored(api):
    """As HTTP has it: the tag says more."""
    ProjectFactory(slug="chat")
    tag = api("GET", "projects/chat")["ETag"]
    conditions = {"if_match": tag, "if_unmodified_since": WHEN}

    assert api("PATCH", "projects/chat", {"name": "New"}, **conditions).status_code == 200
    assert api("PATCH", "projects/chat", {"name": "Newer"}, **conditions).status_code == 412


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_part_does_not_replace_the_whole(api, method):
    """A client that sends a range means only that."""
    ProjectFactory(slug="chat", name="Chat")

    response = api(method, "projects/chat", {"name": "New"}, content_range="bytes 0-14/99")

    assert (response.status_code, response.json()["code"]) == (400, "header_not_supported")
    assert Project.objects.get().name == "Chat"


@pytest.mark.parametrize("body", [{"dry_run": True}, [1], {"reason": "x"}, "x"])
def test_a_deletion_takes_no_body(api, body):
    """A dry run is asked for in the address. In a body, the deletion would have been made."""
    ProjectFactory(slug="chat")

    assert api("DELETE", "projects/chat", body).status_code == 400
    assert Project.objects.exists()
    assert api("DELETE", "projects/chat", {}).status_code == 204


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_not_read(api, coding):
    """Also if it is not compressed, because a proxy on the way may have taken the header at its word."""
    bodies = [gzip.compress(b'{"slug": "chat", "name": "Chat"}'), {"slug": "chat", "name": "Chat"}]

    for body in bodies:
        response = api("POST", "projects", body, content_encoding=coding)
        assert (response.status_code, response["Accept-Encoding"]) == (415, "identity")
    assert not Project.objects.exists()
    assert api("POST", "projects", bodies[1], content_encoding="Identity").status_code == 201


def test_each_wrong_token_of_a_batch_is_named(api):
    """By its form or else by each rule that it breaks, all of them at once."""
    chat, other = ProjectFactory(slug="chat"), ProjectFactory(slug="other")
    PolicyFactory(slug="theirs", project=other)
    past = "2001-01-01T00:00:00Z"
    items = [
        {"project": "chat", "name": "a"},
        {"project": "chat", "name": ""},
        {"project": "chat", "name": "c", "expires_at": past},
        {"project": "none", "name": "d"},
        {"project": "chat", "name": "e", "policy": "theirs"},
        {"project": "chat", "name": "f", "labels": {"team": "\u202e"}},
        {"project": "chat", "name": "g", "expires_at": "tomorrow"},
        5,
        {"project": "chat", "name": "", "expires_at": past, "nam": 1},
        {"project": "chat", "name": "i", "expires_at": past, "policy": "theirs", "labels": {"team": "\u202e"}},
    ]

    response = api("POST", "tokens/batch", {"items": items})

    assert [error["pointer"] for error in response.json()["errors"]] == [
        "#/items/1/name",
        "#/items/2/expires_at",
        "#/items/3/project",
        "#/items/4/policy",
        "#/items/5/labels",
        "#/items/6/expires_at",
        "#/items/7",
        "#/items/8/name",
        "#/items/8/nam",
        "#/items/9/expires_at",
        "#/items/9/policy",
        "#/items/9/labels",
    ]
    assert not Token.objects.filter(project=chat).exists()


def test_a_tag_of_a_token_ends_with_its_suspension(api):
    """Two operators who read it do not give it two ends, of which the first is lost."""
    token, ends = TokenFactory(), [f"2050-01-0{day}T00:00:00Z" for day in (1, 2, 3)]
    path, read = f"tokens/{token.pk}", lambda: api("GET", f"tokens/{token.pk}")["ETag"]
    tags = [read()]
    for end in ends[:2]:
        response = api("POST", f"{path}/suspend", {"ends_at": end}, if_match=tags[-1])
        assert (response.status_code, response["ETag"]) == (200, read())
        tags.append(response["ETag"])

    stale = [api("POST", f"{path}/suspend", {"ends_at": ends[2]}, if_match=tag).status_code for tag in tags[:2]]
    resumed = api("POST", f"{path}/resume", {}, if_match=tags[2])

    assert stale == [412, 412]
    assert (resumed.status_code, resumed["ETag"], len(set(tags))) == (200, tags[0], 3)


def test_a_condition_that_fails_says_why(api):
    """Whether the object is there, is not there, or was changed."""
    ProjectFactory(slug="chat")
    sent = [("chat", {"if_none_match": "*"}), ("new", {"if_match": "*"}), ("chat", {"if_match": '"old"'})]

    refused = [api("PUT", f"projects/{slug}", {"name": "X"}, **condition).json() for slug, condition in sent]

    assert [problem["code"] for problem in refused] == ["stale_version"] * 3
    words = ["The object is there", "There is no such object", "The object was changed after you read it"]
    assert [problem["detail"].startswith(said) for problem, said in zip(refused, words, strict=True)] == [True] * 3


def test_two_reasons_are_refused(api):
    """The audit keeps one. The other one would be lost."""
    body = {"project": None, "name": "ip", "value": "192.0.2.1", "reason": "attack"}

    other, broken, same = (
        api("POST", "suspensions", body, sluicegate_reason=reason) for reason in ("ticket 7", "a\tb", "attack")
    )

    assert [error["code"] for one in (other, broken) for error in one.json()["errors"]] == ["invalid_reason"] * 2
    assert (same.status_code, AuditEntry.objects.get().reason) == (201, "attack")
