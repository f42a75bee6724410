"""Questions that cannot be answered are refused, with the field and the rule."""

import pytest

from tests.factories import ManagementKeyFactory, TokenFactory

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/decision"),
        ({"decision": "dec_x", "token": "tok_x"}, "#/decision"),
        ({"decision": "dec_x"}, "#/decision"),
        ({"decision": "dec_" + "A" * 60}, "#/decision"),
        ({"decision": 7}, "#/decision"),
        ({"token": ""}, "#/token"),
        ({"token": "tok_none"}, "#/token"),
        ({"token": "tok_none", "at": "yesterday"}, "#/at"),
        ({"token": "tok_none", "at": "2200-01-01T00:00:00Z"}, "#/at"),
        ({"decision": "dec_x", "at": "2026-01-01T00:00:00Z"}, "#/at"),
        ({"token": "tok_none", "attributes": {"ip": 7}}, "#/attributes/ip"),
        ({"token": "tok_none", "attributes": {"label.team": "red"}}, "#/attributes"),
        ({"token": "tok_none", "attributes": {str(n): "" for n in range(99)}}, "#/attributes"),
        ({"token": "tok_none", "minute": 1}, "#/minute"),
    ],
)
def test_wrong_questions_name_the_field(api, body, pointer):
    """And nothing is explained."""
    answer = api("POST", "explain", body)

    assert answer.status_code == 400
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


def test_the_scope_is_that_of_usage(call):
    """Usage and denials are read with the same one."""
    key = ManagementKeyFactory(scopes=["tokens:read"])

    assert call("POST", "explain", {"token": TokenFactory().pk}, key=key).status_code == 403
