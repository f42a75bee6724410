from datetime import timedelta

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.keys.bounds import excess
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.keys.scopes import SCOPES
from controlplane.objects.projects.models import Project
from tests.factories import ManagementKeyFactory, ProjectFactory

pytestmark = pytest.mark.django_db

NOW = timezone.now()
SOON, LATER = NOW + timedelta(days=1), NOW + timedelta(days=2)
WIDE = {"scopes": ["keys:read", "keys:write", "tokens:write"], "networks": ["127.0.0.0/8"], "expires_at": SOON}


@pytest.fixture
def project(db) -> Project:
    return ProjectFactory(slug="chat")


@pytest.fixture
def own(project) -> ManagementKey:
    """A key that is limited in everything in which a key can be."""
    return ManagementKeyFactory(projects=[project], **WIDE)


def key_fields(**fields) -> dict:
    """Return a body that makes a key which equals ``own``, unless a field says otherwise."""
    return {"name": "ci", **WIDE, "projects": ["chat"], "expires_at": SOON.isoformat(), **fields}


def codes(response) -> dict[str, str]:
    return {error["pointer"]: error["code"] for error in response.json()["errors"]}


def test_a_key_is_made_with_what_it_may_do(api, call):
    """The secret is in this one response, and works. The audit has no secret."""
    ProjectFactory(slug="chat")

    made = api("POST", "management-keys", {"name": "ci", "scopes": ["projects:read"], "projects": ["chat"]})

    shown = made.json()
    key = ManagementKey.objects.get(pk=shown["id"])
    key.secret = shown.pop("secret")
    assert (made.status_code, shown["all_projects"], shown["networks"], shown["expires_at"]) == (201, False, None, None)
    assert [one["slug"] for one in call("GET", "projects", key=key).json()["results"]] == ["chat"]
    assert {**api("GET", made["Location"]).json(), "last_used_at": None} == shown
    entry = AuditEntry.objects.get()
    assert (entry.action, key.secret in str(entry.after)) == ("managementkey.create", False)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"projects": []}, {"#/projects": "rule"}),
        ({"projects": [], "all_projects": True}, {"#/all_projects": "exceeds_own_key"}),
        ({"projects": ["shop"]}, {"#/projects": "does_not_exist"}),
        ({"scopes": ["*"]}, {"#/scopes": "exceeds_own_key"}),
        ({"scopes": ["policies:write"]}, {"#/scopes": "exceeds_own_key"}),
        ({"networks": None}, {"#/networks": "exceeds_own_key"}),
        ({"networks": ["0.0.0.0/0"]}, {"#/networks": "exceeds_own_key"}),
        ({"networks": ["::/0"]}, {"#/networks": "exceeds_own_key"}),
        ({"expires_at": None}, {"#/expires_at": "exceeds_own_key"}),
        ({"expires_at": LATER.isoformat()}, {"#/expires_at": "exceeds_own_key"}),
    ],
)
def test_a_key_makes_none_that_is_more_than_itself(call, own, fields, wrong):
    """Each field in which it would be is named, and none is made."""
    ProjectFactory(slug="shop")

    response = call("POST", "management-keys", key_fields(**fields), key=own)

    assert (response.status_code, codes(response)) == (400, wrong)
    assert ManagementKey.objects.count() == 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scopes": ["tokens:issue"]},  # comes with tokens:write
        {"networks": ["127.0.0.1"]},
        {"expires_at": (SOON - timedelta(hours=1)).isoformat()},
    ],
)
def test_a_key_makes_one_that_is_no_more_than_itself(call, own, fields):
    """It may be equal or less."""
    assert call("POST", "management-keys", key_fields(**fields), key=own).status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": ["*"]},
        {"all_projects": True, "projects": []},
        {"networks": None},
        {"networks": ["127.0.0.0/8", "10.0.0.0/8"]},
        {"expires_at": None},
        {"expires_at": LATER.isoformat()},
    ],
)
@pytest.mark.parametrize("which", ["itself", "another"])
def test_a_key_changes_none_into_more_than_itself(call, own, project, body, which):
    """Neither itself nor another one."""
    key = own if which == "itself" else ManagementKeyFactory(projects=[project], **{**WIDE, "scopes": ["tokens:write"]})
    before = key.as_record()

    response = call("PATCH", f"management-keys/{key.pk}", body, key=own)

    assert (response.status_code, set(codes(response).values())) == (400, {"exceeds_own_key"})
    assert ManagementKey.objects.get(pk=key.pk).as_record() == before


@pytest.mark.parametrize("greater", [{"scopes": ["*"]}, {"networks": None}, {"expires_at": None}])
@pytest.mark.parametrize("deed", ["rotate", "revoke", "change"])
def test_a_key_touches_none_that_is_more_than_itself(call, own, project, greater, deed):
    """A rotation would hand over its secret, and a change or revocation would take its rights away."""
    key = ManagementKeyFactory(projects=[project], **{**WIDE, **greater})
    path = f"management-keys/{key.pk}"

    sent = ("PATCH", path, {"name": "x"}) if deed == "change" else ("POST", f"{path}/{deed}")
    response = call(*sent, key=own)

    assert (response.status_code, response.json()["code"]) == (403, "exceeds_own_key")
    assert next(iter(greater)) in response.json()["detail"]
    assert ManagementKey.objects.get(pk=key.pk).is_live


@given(data=st.data())
def test_no_change_is_more_than_the_key_that_makes_it(data):
    """Whatever is asked for, what is not reported in excess is within the scopes, networks and end of the key."""
    scopes = st.lists(st.sampled_from(SCOPES), min_size=1, unique=True)
    networks = st.none() | st.lists(st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "::/0", "2001:db8::/32"]), min_size=1)
    ends = st.none() | st.sampled_from([NOW, SOON, LATER])
    keys = st.builds(ManagementKey, scopes=scopes, networks=networks, expires_at=ends, all_projects=st.just(True))
    own, key = data.draw(keys), data.draw(keys)

    if not excess(own, key, []):
        assert all(own.allows(scope) for scope in SCOPES if key.allows(scope))
        assert own.expires_at is None or (key.expires_at and key.expires_at <= own.expires_at)
        addresses = ("10.0.0.1", "10.1.0.1", "2001:db8::1", "2001:db9::1", "192.0.2.1", None)
        assert all(own.allows_from(address) for address in addresses if key.allows_from(address))


def test_a_limited_key_sees_keys_of_its_projects_only(call, own, project):
    """Those of others, of others besides, and of all projects are not found."""
    other = ProjectFactory()
    hidden = [ManagementKeyFactory(projects=projects) for projects in ([], [other], [other, project])]

    found = call("GET", "management-keys", key=own).json()["results"]

    assert [one["id"] for one in found] == [own.pk]
    for key in hidden:
        assert call("GET", f"management-keys/{key.pk}", key=own).status_code == 404
        assert call("POST", f"management-keys/{key.pk}/revoke", key=own).status_code == 404


def test_a_change_is_audited_once(api, project):
    """A second one with the same values changes nothing."""
    key = ManagementKeyFactory(projects=[project])
    body = {"networks": ["192.0.2.1"], "scopes": ["usage:read"]}

    first, second = (api("PATCH", f"management-keys/{key.pk}", body) for _ in range(2))

    assert first.json()["networks"] == second.json()["networks"] == ["192.0.2.1/32"]
    assert (first["ETag"], first.status_code) == (second["ETag"], 200)
    entry = AuditEntry.objects.get()
    assert entry.action == "managementkey.update"
    assert (entry.before["networks"], entry.after["networks"]) == (None, ["192.0.2.1/32"])


def test_projects_are_changed_together(api, project):
    """The list replaces the former one, and the audit has both."""
    ProjectFactory(slug="shop")
    key = ManagementKeyFactory(projects=[project])

    assert api("PATCH", f"management-keys/{key.pk}", {"projects": ["shop"]}).json()["projects"] == ["shop"]

    entry = AuditEntry.objects.get()
    assert (entry.before["projects"], entry.after["projects"]) == (["chat"], ["shop"])


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"projects": []}, {"#/projects": "rule"}),
        ({"all_projects": True}, {"#/projects": "rule"}),
        ({"projects": "chat"}, {"#/projects": "invalid"}),
        ({"projects": [1]}, {"#/projects": "invalid"}),
        ({"networks": []}, {"#/networks": "empty"}),
        ({"networks": ["office"]}, {"#/networks": "rule"}),
        ({"scopes": []}, {"#/scopes": "empty"}),
        ({"scopes": ["projects:reed"]}, {"#/scopes/0": "invalid_choice"}),
        ({"secret": "sg_mgmt_x"}, {"#/secret": "unknown_field"}),
        ({"prefix": "sg_mgmt_x"}, {"#/prefix": "read_only"}),
        ({"expires_at": "2020-01-01T00:00:00Z"}, {"#/expires_at": "past"}),
    ],
)
def test_a_wrong_field_is_named(api, project, body, wrong):
    """An empty list never means all."""
    key = ManagementKeyFactory(projects=[project])

    response = api("PATCH", f"management-keys/{key.pk}", body)

    assert (response.status_code, codes(response)) == (400, wrong)


def test_a_wrong_choice_names_the_choices(api, project):
    """Of a field, of a member of a list, and of a parameter."""
    key = ManagementKeyFactory(projects=[project])

    wrong = [
        api("PATCH", f"management-keys/{key.pk}", {"scopes": ["projects:read", "projects:reed"]}),
        api("POST", "memberships", {"user": "ben", "project": project.slug, "role": "operator"}),
        api("GET", "jobs?state=over"),
    ]

    named = {
        error.get("pointer") or error["parameter"]: error["detail"] for it in wrong for error in it.json()["errors"]
    }
    assert named["#/scopes/1"].startswith('"projects:reed" is not a valid choice. Must be one of: projects:read, ')
    assert named["#/role"] == '"operator" is not a valid choice. Must be one of: viewer, editor, owner.'
    assert named["state"].startswith('"over" is not a valid choice. Must be one of: ')


def test_a_rotated_key_has_a_successor_with_the_same_rights(api, call, project):
    """The old secret goes on working for the overlap, and is not rotated twice."""
    key = ManagementKeyFactory(projects=[project], scopes=["projects:read"], networks=["127.0.0.1/32"])

    made = api("POST", f"management-keys/{key.pk}/rotate", {"overlap_seconds": 60})
    again = api("POST", f"management-keys/{key.pk}/rotate")

    new = ManagementKey.objects.get(pk=made.json()["id"])
    new.secret = made.json()["secret"]
    old, record = key.as_record(), new.as_record()
    assert made.status_code == 201
    assert all(record[name] == old[name] for name in ("name", "scopes", "all_projects", "projects", "networks"))
    assert [call("GET", "projects", key=one).status_code for one in (key, new)] == [200, 200]
    assert (again.status_code, again.json()["code"], new.pk in again.json()["detail"]) == (409, "already_rotated", True)
    assert list(AuditEntry.objects.order_by("id").values_list("action", flat=True)) == [
        "managementkey.rotate",
        "managementkey.create",
    ]


def test_a_key_that_ends_does_not_outlive_itself_by_rotation(call, own):
    """Its successor ends when it would have ended, not a whole life span later."""
    made = call("POST", f"management-keys/{own.pk}/rotate", {"overlap_seconds": 60}, key=own)

    assert ManagementKey.objects.get(pk=made.json()["id"]).expires_at == own.expires_at


def test_a_revoked_key_is_refused_and_stays_as_it_is(api, call):
    """Revoking again changes nothing, and other fields are not changed any more."""
    key = ManagementKeyFactory()
    path = f"management-keys/{key.pk}"

    statuses = [api("POST", f"{path}/revoke").json()["status"] for _ in range(2)]

    assert (statuses, call("GET", "projects", key=key).status_code) == (["revoked", "revoked"], 401)
    assert AuditEntry.objects.count() == 1
    assert codes(api("PATCH", path, {"scopes": ["usage:read"]})) == {"#/scopes": "ended"}
    assert api("POST", f"{path}/rotate").json()["code"] == "management_key_not_live"


def test_a_secret_is_not_repeated(api):
    """A repeated creation answers with the same key, without its secret."""
    body = {"name": "ci", "scopes": ["projects:read"], "all_projects": True}

    first, second = (api("POST", "management-keys", body, idempotency_key="one") for _ in range(2))

    assert second.json() == {**first.json(), "secret": None}
    assert ManagementKey.objects.filter(name="ci").count() == 1


def test_a_stale_change_is_refused(api):
    """If-Match names the state that was read."""
    key = ManagementKeyFactory()
    etag = api("GET", f"management-keys/{key.pk}")["ETag"]

    statuses = [
        api("PATCH", f"management-keys/{key.pk}", {"name": name}, if_match=etag).status_code for name in ("one", "two")
    ]

    assert statuses == [200, 412]


def test_lists_are_narrowed_by_status_and_name(api, key):
    """An unknown status is refused."""
    revoked = ManagementKeyFactory(revoked=True, name="old")

    assert [one["id"] for one in api("GET", "management-keys?status=revoked").json()["results"]] == [revoked.pk]
    assert [one["id"] for one in api("GET", "management-keys?status=active").json()["results"]] == [key.pk]
    assert [one["id"] for one in api("GET", "management-keys?name=old").json()["results"]] == [revoked.pk]
    assert api("GET", "management-keys?status=gone").status_code == 400
