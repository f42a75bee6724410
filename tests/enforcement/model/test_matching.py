"""Which requests a limit applies to."""

import re

import pytest

from enforcement import InvalidLimit, Limit, Match
from enforcement.model.matching import InvalidMatch


@pytest.mark.parametrize(
    ("match", "attributes", "expected"),
    [
        (Match(), {}, True),
        (Match(methods=("GET", "HEAD")), {"method": "HEAD"}, True),
        (Match(methods=("GET",)), {"method": "POST"}, False),
        (Match(methods=("GET",)), {}, False),
        (Match(path="/v1/*"), {"path": "/v1/chat/completions"}, True),
        (Match(path="/v1/*"), {"path": "/v2/chat"}, False),
        (Match(attributes={"model": ("a", "b")}), {"model": "b"}, True),
        (Match(attributes={"model": ("a*",)}), {"model": "ab"}, False),
        (Match(attributes={"model": "gpt-*"}), {"model": "gpt-5"}, True),
        (Match(attributes={"model": "gpt"}), {"model": "gpt-5"}, False),
    ],
)
def test_a_match_is_exact_a_list_or_a_glob(match, attributes, expected):
    """A request that lacks what a rule names does not match."""
    test = match.compile()
    assert (test is None or test(attributes)) is expected


@pytest.mark.parametrize("path", ["/", "/v1/*", "*/chat", "?v1", "[/]v1", ""])
def test_a_path_begins_with_a_slash_or_a_wildcard(path):
    """Each of these may match the path of a request."""
    assert Match(path=path).path == path


def test_a_path_that_matches_no_request_is_refused():
    """The error names the field, as JSON does, the rule and the value."""
    rule = "Must begin with / or a wildcard, because every path of a request begins with /, got 'v1/*'."
    data = {"name": "x", "algorithm": "fixed_window", "quota": 5, "window_seconds": 60, "match": {"path": "v1/*"}}

    with pytest.raises(InvalidMatch, match=re.escape(rule)):
        Match(path="v1/*")
    with pytest.raises(InvalidLimit) as caught:
        Limit.from_json(data)
    assert (caught.value.field, caught.value.reason) == ("match.path", rule)
