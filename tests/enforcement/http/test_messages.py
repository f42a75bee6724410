"""What all HTTP doors share: finding the token and the client, and adding fields to an answer."""

from __future__ import annotations

import pytest

from enforcement.http.families import tighter_families
from enforcement.http.messages import (
    Refusal,
    RequestAttributes,
    find_token,
    joining,
)
from enforcement.model.tokens import mint


def test_bearer_token_is_found_whatever_the_case_of_its_scheme() -> None:
    """Authentication schemes are named in any case (RFC 9110, 11.1)."""
    assert find_token("bEARER  sg_live_x ", None) == "sg_live_x"


def test_another_scheme_is_no_token() -> None:
    """Basic credentials are somebody else's. A request with them is not anonymous."""
    assert find_token("Basic dXNlcjpwYXNz", None) == ""


def test_blank_credential_is_none() -> None:
    """A header without content is a missing token, not an unknown one, and the request is not anonymous."""
    assert [find_token("Bearer ", ""), find_token("", None), find_token(None, " ")] == ["", "", ""]


def test_request_without_either_field_shows_no_token() -> None:
    """Only such a request can be anonymous."""
    assert find_token(None, None) is None


def test_api_key_is_taken_where_the_bearer_token_is_the_upstreams() -> None:
    """Both headers may be there: the one that could be ours is ours."""
    token = mint("live")

    assert find_token("Bearer another-credential", token) == token


def test_bearer_token_comes_first_where_both_could_be_ours() -> None:
    """The order is the documented one."""
    first, second = mint("live"), mint("live")

    assert find_token(f"Bearer {first}", second) == first


def test_a_key_in_the_field_of_a_provider_is_a_token_too() -> None:
    """The first that could be ours, whatever the other fields hold."""
    token = mint("live")

    assert find_token("Bearer another-credential", "another-key", token, mint("live")) == token
    assert find_token(None, None, token) == token
    assert find_token(None, None, None, " ") == ""


def test_bearer_token_stands_where_neither_could_be_ours() -> None:
    """An ill-formed token is answered as unknown, not as missing."""
    assert find_token("Bearer garbage", "rubbish") == "garbage"


def test_header_is_an_attribute_when_asked_for() -> None:
    """Headers are looked up on demand, and not among what is counted."""
    attributes = RequestAttributes({"path": "/x", "ip": None}, {"x-team": "red", "x-blank": " red\t "}.get)

    assert attributes["header.x-team"] == attributes["header.x-blank"] == "red"
    assert "header.x-other" not in attributes
    assert dict(attributes) == {"path": "/x"}


@pytest.mark.parametrize(
    "name", ["authorization", "proxy-authorization", "cookie", "x-api-key", "x-goog-api-key", "api-key"]
)
def test_credentials_are_never_attributes(name: str) -> None:
    """A secret must not become part of a counter's name."""
    assert f"header.{name}" not in RequestAttributes({}, {name: "secret"}.get)


def test_path_that_is_too_long_is_refused() -> None:
    """Cut short, it would match limits that are not its own, or miss its own."""
    with pytest.raises(Refusal) as refused:
        RequestAttributes({"path": "/" + "x" * 1024}, {}.get)

    assert refused.value.status == 414


def test_header_that_is_too_long_is_refused_when_a_limit_looks_at_it() -> None:
    """Left out, the request would escape the limit."""
    attributes = RequestAttributes({}, {"x-team": "x" * 1025}.get)

    with pytest.raises(Refusal) as refused:
        attributes["header.x-team"]

    assert refused.value.status == 431


def test_lists_join_the_applications_and_single_values_do_not() -> None:
    """An intermediary adds to what the application says and never replaces it."""
    added = [("RateLimit", '"a";r=1'), ("X-RateLimit-Limit", "10"), ("Sluicegate-Degraded", "fallback")]

    joined = joining(["ratelimit", "x-ratelimit-limit"], added)

    assert joined == [("RateLimit", '"a";r=1'), ("Sluicegate-Degraded", "fallback")]


def test_a_family_of_the_application_stays_whole() -> None:
    """What remains of our limit says nothing of theirs. Another family, and other fields, are added."""
    fields = ["X-RateLimit-Limit", "X-RateLimit-Remaining", "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens"]
    added = [(name, "1") for name in ("RateLimit", *fields, "anthropic-ratelimit-tokens-limit")]

    joined = joining([b"X-Ratelimit-Reset", "X-RateLimit-Policy", "anthropic-ratelimit-requests-limit"], added)

    assert [name for name, _ in joined] == ["RateLimit", *fields[2:], "anthropic-ratelimit-tokens-limit"]


@pytest.mark.parametrize(
    ("theirs", "ours", "tighter"),
    [
        ({"X-RateLimit-Remaining": "5"}, {"x-ratelimit-remaining": "4"}, {"x-ratelimit"}),
        ({"X-RateLimit-Remaining": "5"}, {"X-RateLimit-Remaining": "5"}, set()),
        ({"X-RateLimit-Remaining": "5"}, {"X-RateLimit-Remaining-Tokens": "4"}, set()),
        ({"X-RateLimit-Limit": "9"}, {"X-RateLimit-Remaining": "0"}, set()),
        ({"X-RateLimit-Remaining": "-1"}, {"X-RateLimit-Remaining": "0"}, set()),
        (
            {"anthropic-ratelimit-tokens-remaining": "5", "anthropic-ratelimit-requests-remaining": "1"},
            {"anthropic-ratelimit-tokens-remaining": "4", "anthropic-ratelimit-requests-remaining": "4"},
            {"anthropic-ratelimit-tokens"},
        ),
    ],
)
def test_the_tighter_limit_has_less_left(theirs: dict[str, str], ours: dict[str, str], tighter: set[str]) -> None:
    """If one of the two does not say, ours might promise too much."""
    assert tighter_families(list(theirs.items()), list(ours.items())) == tighter
