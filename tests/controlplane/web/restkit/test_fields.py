"""Nothing that a client sends is taken for something else."""

import pytest

from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.models import Project, Token
from tests.factories import OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db


def codes(response) -> dict[str, str]:
    assert response.status_code == 400, response.content
    return {error["pointer"]: error["code"] for error in response.json()["errors"]}


@pytest.mark.parametrize("value", [1, 1.0, True, [], {}])
def test_a_number_is_no_text(api, value):
    """1 is not "1"."""
    assert codes(api("POST", "projects", {"slug": "chat", "name": value})) == {"#/name": "invalid"}


@pytest.mark.parametrize("value", ["true", 1, 0, "1"])
def test_a_text_is_no_truth(api, value):
    """Only true and false are."""
    body = {"slug": "chat", "name": "Chat", "active": value}

    assert codes(api("POST", "projects", body)) == {"#/active": "invalid"}


@pytest.mark.parametrize("value", ["1", True, [1]])
def test_a_text_is_no_number(api, value):
    """ "1" is not 1."""
    override = OverrideFactory()

    assert codes(api("PATCH", f"overrides/{override.pk}", {"quota": value})) == {"#/quota": "invalid"}


@pytest.mark.parametrize("value", [1.5, 2.0])
def test_a_fraction_is_no_whole_number(api, value):
    """Nothing is rounded, and a decimal point is not overlooked."""
    override = OverrideFactory()

    assert codes(api("PATCH", f"overrides/{override.pk}", {"quota": value})) == {"#/quota": "fraction"}


@pytest.mark.parametrize("value", [-1, 2**53, 10**18, 10**400], ids=["-1", "2**53", "10**18", "10**400"])
def test_numbers_are_bounded(api, value):
    """What enforcers could not count is refused, at the first door."""
    override = OverrideFactory()

    found = codes(api("PATCH", f"overrides/{override.pk}", {"quota": value}))

    assert found in ({"#/quota": "min_value"}, {"#/quota": "max_value"})


@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_a_blank_name_is_none(api, value):
    """A list of nameless things helps nobody."""
    assert codes(api("POST", "projects", {"slug": "chat", "name": value})) == {"#/name": "blank"}


def test_a_text_is_kept_as_it_is(api):
    """Nothing is trimmed behind a client's back."""
    assert api("POST", "projects", {"slug": "chat", "name": " Chat "}).json()["name"] == " Chat "


@pytest.mark.parametrize("value", ["2026-12-01", "2026-12-01T12:00:00", "tomorrow", 1764590400, "2026-13-01T00:00:00Z"])
def test_a_time_without_offset_is_refused(api, value):
    """Nobody has to guess whose noon is meant."""
    ProjectFactory(slug="chat")

    found = codes(api("POST", "projects/chat/tokens", {"name": "ci", "expires_at": value}))

    assert found == {"#/expires_at": "invalid"}


@pytest.mark.parametrize("value", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2300-01-01T00:00:00Z"])
def test_a_time_that_enforcers_could_not_count_is_refused(api, value):
    """Microseconds since 1970 are read up to 2**53."""
    ProjectFactory(slug="chat")

    assert codes(api("POST", "projects/chat/tokens", {"name": "ci", "expires_at": value})) == {"#/expires_at": "range"}


def test_a_time_comes_back_in_utc(api):
    """With Z, whatever the offset it came with."""
    ProjectFactory(slug="chat")

    body = {"name": "ci", "expires_at": "2027-01-01T00:00:00+02:00"}

    assert api("POST", "projects/chat/tokens", body).json()["expires_at"] == "2026-12-31T22:00:00Z"


@pytest.mark.parametrize("value", ["", "Chat", "a b", "-a", "a/b", "a\n", "x" * 64], ids=repr)
def test_a_wrong_slug_is_refused(api, value):
    """In the address of later requests it would be a riddle."""
    assert list(codes(api("POST", "projects", {"slug": value, "name": "Chat"}))) == ["#/slug"]


def test_what_was_read_may_be_sent_back(api):
    """Read-only fields that did not change are no error."""
    ProjectFactory(slug="chat", name="Chat")
    read = api("GET", "projects/chat").json()

    response = api("PUT", "projects/chat", {**read, "name": "Talk"})

    assert response.status_code == 200
    assert Project.objects.get().name == "Talk"


@pytest.mark.parametrize(
    ("name", "value"),
    [("id", "proj_x"), ("version", 9), ("created_at", "2020-01-01T00:00:00Z")],
)
def test_read_only_fields_are_not_written(api, name, value):
    """And the client is told, not left to think they were."""
    ProjectFactory(slug="chat")

    assert codes(api("PATCH", "projects/chat", {name: value})) == {f"#/{name}": "read_only"}


@pytest.mark.parametrize("name", ["digest", "prefix", "revoked_at", "last_used_at", "project", "secret", "status"])
def test_no_field_of_a_token_is_written_past_its_verbs(api, name):
    """Revoking and rotating are the only ways to what they change."""
    token = TokenFactory()

    response = api("PATCH", f"tokens/{token.pk}", {name: "x"})

    assert response.status_code == 400
    assert Token.objects.get().digest == token.digest


LIMIT = {"name": "per-minute", "quota": 100, "window_seconds": 60}


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"window_seconds": 0}, "#/limits/0/window_seconds"),
        ({"window_seconds": "60"}, "#/limits/0/window_seconds"),
        ({"window_seconds": None}, "#/limits/0/window_seconds"),
        ({"quota": True}, "#/limits/0/quota"),
        ({"quota": 1.0}, "#/limits/0/quota"),
        ({"quota": None}, "#/limits/0/quota"),
        ({"name": "with blank"}, "#/limits/0/name"),
        ({"name": None}, "#/limits/0/name"),
        ({"name": ""}, "#/limits/0/name"),
        ({"algorithm": "leaky"}, "#/limits/0/algorithm"),
        ({"mode": "off"}, "#/limits/0/mode"),
        ({"match": {"path": 1}}, "#/limits/0/match/path"),
        ({"match": {"path": "v1/*"}}, "#/limits/0/match/path"),
        ({"match": {"methods": ["post"]}}, "#/limits/0/match/methods"),
        ({"match": {"header": "x"}}, "#/limits/0/match/match"),
        ({"match": {"attributes": {"UPPER": "x"}}}, "#/limits/0/match/attributes"),
        ({"burst": 10}, "#/limits/0/burst"),
        ({"rollover": 10}, "#/limits/0/rollover"),
        ({"window_seconds": None, "calendar": "month", "rollover": "10"}, "#/limits/0/rollover"),
        ({"window_seconds": None, "calendar": "month", "anchor": "15"}, "#/limits/0/anchor"),
        ({"window_seconds": None, "calendar": "day", "time_zone": "Mars/Olympus"}, "#/limits/0/time_zone"),
        ({"qota": 1}, "#/limits/0/qota"),
        ({"position": 1}, "#/limits/0/position"),
    ],
)
def test_a_limit_that_no_enforcer_could_enforce_is_refused(api, change, pointer):
    """The error points into the limit; nothing is saved."""
    body = {"slug": "free", "name": "Free", "limits": [{**LIMIT, **change}]}

    assert list(codes(api("POST", "policies", body))) == [pointer]
    assert not Limit.objects.exists()


def test_two_limits_of_one_name_are_refused(api):
    """A name is a limit's identity."""
    body = {"slug": "free", "name": "Free", "limits": [LIMIT, LIMIT]}

    assert list(codes(api("POST", "policies", body))) == ["#/limits"]


def test_a_policy_holds_at_most_32_limits(api):
    """As many as one decision may charge."""
    limits = [{**LIMIT, "name": f"limit-{number}"} for number in range(33)]

    response = api("POST", "policies", {"slug": "free", "name": "Free", "limits": limits})

    assert list(codes(response)) == ["#/limits"]
    many = api("POST", "policies", {"slug": "free", "name": "Free", "limits": [{}] * 50_000})
    assert codes(many) == {"#/limits": "max_length"}


def test_a_limit_of_a_patch_is_whole(api):
    """PATCH merges the policy, not each limit: a quota left out is missing there too."""
    PolicyFactory(slug="free")

    found = codes(api("PATCH", "policies/free", {"limits": [{"name": "per-minute", "window_seconds": 60}]}))

    assert found == {"#/limits/0/quota": "required"}


def test_the_first_hundred_unknown_fields_of_an_object_are_named(api):
    """A body has room for 100,000 of them, and a response with all of them would take seconds."""
    more = {f"name{number}": 1 for number in range(1_000)}

    found = codes(api("POST", "projects", {"slug": "chat", **more}))
    of_limit = codes(api("POST", "policies", {"slug": "a", "name": "A", "limits": [{**LIMIT, **more}]}))

    assert found == {"#/name": "required", **dict.fromkeys([f"#/name{n}" for n in range(100)], "unknown_field")}
    assert (len(of_limit), set(of_limit.values())) == (100, {"unknown_field"})
