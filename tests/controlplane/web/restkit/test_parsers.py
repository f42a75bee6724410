"""Changes as merge patches (RFC 7396), beside plain JSON, whose members replace what they name."""

import pytest

from controlplane.objects.projects.models import Token
from controlplane.web.restkit.parsers import merged
from tests.factories import TokenFactory

pytestmark = pytest.mark.django_db
PATCH = {"content_type": "application/merge-patch+json"}


# The examples of RFC 7396, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_the_examples_of_the_standard(target, patch, result):
    assert merged(target, patch) == result


def test_a_merge_patch_changes_single_labels(api):
    """Null removes one, and those that it does not name stay."""
    token = TokenFactory(labels={"team": "red", "owner": "ann"})

    answer = api("PATCH", f"tokens/{token.pk}", {"labels": {"team": None, "tier": "gold"}}, **PATCH)

    assert (answer.status_code, answer.json()["labels"]) == (200, {"owner": "ann", "tier": "gold"})
    assert Token.objects.get().labels == {"owner": "ann", "tier": "gold"}


def test_plain_json_replaces_labels(api):
    """As before."""
    token = TokenFactory(labels={"team": "red"})

    assert api("PATCH", f"tokens/{token.pk}", {"labels": {"tier": "gold"}}).json()["labels"] == {"tier": "gold"}


def test_null_takes_away_what_may_be_missing(api):
    """And names the field that may not."""
    token = TokenFactory(policy=None)

    assert api("PATCH", f"tokens/{token.pk}", {"policy": None, "name": "new"}, **PATCH).json()["name"] == "new"
    refused = api("PATCH", f"tokens/{token.pk}", {"name": None}, **PATCH)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (400, "#/name")


@pytest.mark.parametrize("body", ["[]", "7", "null"])
def test_a_patch_that_is_no_object_is_refused(api, body):
    """It would replace the whole token."""
    token = TokenFactory()

    assert api("PATCH", f"tokens/{token.pk}", body, **PATCH).status_code == 400


def test_only_a_change_may_be_a_merge_patch(api):
    """To create or to replace something with one means nothing."""
    assert api("POST", "projects", {"slug": "a", "name": "A"}, **PATCH).status_code == 415


def test_a_change_of_another_type_is_told_what_is_read(api):
    """As RFC 5789 has it."""
    refused = api("PATCH", f"tokens/{TokenFactory().pk}", "name=x", content_type="application/x-www-form-urlencoded")

    assert (refused.status_code, refused["Accept-Patch"]) == (415, "application/json, application/merge-patch+json")
