"""Names of counters, as any language makes them: by the recipe of the documentation, in the Lua of a store."""

import json
from pathlib import Path

import pytest

from enforcement.model.documents import Policy, ProjectDocument, TokenDocument
from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.plan.binding import bind_in_code
from enforcement.plan.rules import Subject, rules_of

FILE = Path(__file__).parents[2] / "vectors" / "names" / "names.json"
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))["vectors"]
# ARGV are the strings; a store's Lua counts bytes.
RECIPE = """
local text = {}
for _, part in ipairs(ARGV) do text[#text + 1] = #part .. ':' .. part end
return redis.sha1hex(table.concat(text))
"""


def bound(vector):
    """Bind a limit as an enforcer does, and return its counter and its index of values."""
    limit, keys = Limit.from_json(vector["limit"]), Keys()
    if vector["scope"] == "key":
        return bind_in_code([limit], vector["holder"], keys)[0], None
    policy, project = vector["policy"], vector["project"]
    scopes = ("global", "project", "anonymous", "token")
    attached = {scope: policy if scope == vector["scope"] else None for scope in scopes}
    anonymous = vector["scope"] == "anonymous"
    token = (
        None if anonymous else TokenDocument(vector["holder"] or "tok_1", project, "t", attached["token"], False, None)
    )
    holder = ProjectDocument(project, "shop", True, attached["project"], anonymous_policy=attached["anonymous"])
    policies = {policy: Policy(policy, "api", (limit,))}
    (rule,) = rules_of(Subject(holder, token, policies, attached["global"], anonymous), 0)
    index = rule.partitions(keys)
    return rule.bind(keys, vector["attributes"], index), index


def shape(limit):
    """Return the last of the strings, as the documentation says it."""
    algorithm = limit["algorithm"]
    if algorithm not in ("fixed_window", "sliding_window"):
        return algorithm
    if "calendar" in limit:
        return "|".join([algorithm, limit["calendar"], limit.get("time_zone", "UTC"), str(limit.get("anchor", ""))])
    return f"{algorithm}|{limit['window_seconds']}"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["title"])
def test_a_name_is_what_the_recipe_makes(world, vector):
    """The counter of a limit, and for a partitioned one its index, the value in it and the counter beyond the cap."""

    def name(*parts):
        return world.client.eval(RECIPE, 0, *(part.encode() for part in parts))

    scope, holder, limit = vector["scope"], vector["holder"], vector["limit"]
    tag = {"global": "global", "key": name("key", holder)[:22]}.get(scope, vector.get("project"))
    identity = [scope, holder, vector["policy"], limit["name"]]
    values = [
        text for attribute in limit.get("partition_by", ()) for text in (attribute, vector["attributes"][attribute])
    ]

    assert vector["key"] == f"sg:{{{tag}}}:c:{name(*identity, *values, shape(limit))[:24]}"
    if values:
        index = name("census", vector["project"], vector["policy"], limit["name"])[:24]
        overflow = name("overflow", vector["project"], *identity, shape(limit))[:24]
        assert (vector["index"], vector["overflowed"]) == (f"sg:{{{tag}}}:n:{index}", f"sg:{{{tag}}}:o:{index}")
        assert vector["value"] == name(*identity, *values)[:24]
        assert vector["overflow"] == f"sg:{{{tag}}}:c:{overflow}"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["title"])
def test_an_enforcer_uses_these_names(vector):
    """The planner of this library makes what the vectors say."""
    counter, index = bound(vector)

    assert counter.key == vector["key"]
    if index:
        assert (index.key, index.overflowed, index.overflow) == (
            vector["index"],
            vector["overflowed"],
            vector["overflow"],
        )
        assert counter.value == vector["value"]


def test_only_the_quota_shares_a_counter():
    """Two vectors differ in their quota alone; every other one has a counter of its own."""
    assert len({vector["key"] for vector in VECTORS}) == len(VECTORS) - 1


def test_a_calendar_window_is_computed_once_and_ends_at_its_boundary():
    """A limit is asked for its window by each decision and settlement. The clock may also go back."""
    (bound,) = bind_in_code([Limit(name="day", algorithm="fixed_window", quota=1, calendar="day")], "k", Keys())
    noon, day = 1_767_268_800_000_000, 86_400_000_000

    found = bound.spec(noon)

    assert found.windows[1:3] == (noon - day // 2, noon + day // 2)
    assert bound.spec(noon + day // 2 - 1) is found
    assert bound.spec(noon + day // 2).windows[1] == noon + day // 2
    assert bound.spec(noon - day // 2 - 1).windows[2] == noon - day // 2
