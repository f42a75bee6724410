"""Envoy's rate limit service, version 3: what descriptors mean, and what the answers say."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from enforcement import Limit, Match
from enforcement.embedded import ValkeyServer
from enforcement.service.wire import write_integer
from tests.enforcement.service.grpc_client import RLS, Channel
from tests.enforcement.service.oracle import REQUEST, RESPONSE, Oracle
from tests.enforcement.service.running import Gateway, gateway, hourly
from tests.enforcement.world import eventually

MAPPING = """
token = ["token", "api_key"]
unit = "unit"
after = "after"

[attributes]
generic_key = "tier"

[costs]
prompt = "input_tokens"

[projects]
edge_gateway = "shop"
"""


@pytest.fixture(scope="module")
def plain(server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A service without a mapping file. Its callers are named, so they may give permits back."""
    with gateway(server, tmp_path_factory.mktemp("plain"), service_callers="127.0.0.1") as running:
        yield running


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A service with a mapping file."""
    folder = tmp_path_factory.mktemp("mapped")
    (folder / "rls.toml").write_text(MAPPING)
    with (
        ValkeyServer(persistent=False) as server,
        gateway(server, folder, rls_mapping=str(folder / "rls.toml"), service_callers="127.0.0.1") as running,
    ):
        yield running


class Asking:
    """Calls the method of one service, with messages by the oracle."""

    def __init__(self, channel: Channel, reader: Oracle) -> None:
        self._channel, self._reader = channel, reader

    def __call__(self, *descriptors: dict[str, Any], domain: str = "shop", **more: Any) -> dict[str, Any]:
        request = {"domain": domain, "descriptors": list(descriptors), **more}
        return self.message(self._reader.encode(f"{REQUEST}+", request))

    def message(self, message: bytes) -> dict[str, Any]:
        return self._reader.decode(RESPONSE, self._channel.ask(RLS, message))


@pytest.fixture
def ask(plain: Gateway, reader: Oracle) -> Iterator[Asking]:
    with plain.channel() as channel:
        yield Asking(channel, reader)


@pytest.fixture
def ask_mapped(mapped: Gateway, reader: Oracle) -> Iterator[Asking]:
    with mapped.channel() as channel:
        yield Asking(channel, reader)


def descriptor(entries: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"entries": [{"key": key, "value": value} for key, value in entries.items()], **more}


def headers(answer: dict[str, Any]) -> dict[str, str]:
    return {it["key"].lower(): it["value"] for it in answer.get("response_headers_to_add", [])}


def body(answer: dict[str, Any]) -> str:
    return base64.b64decode(answer["raw_body"]).decode()


def remaining_in(answer: dict[str, Any]) -> int:
    """Return how many permits an answer says are left of the only limit."""
    return answer["statuses"][0].get("limit_remaining", 0)


def test_answers_hold_status_limit_and_header_fields(plain: Gateway, ask: Asking) -> None:
    """Envoy learns the decision, and the client of Envoy what is left, by the fields of this project."""
    token = plain.token(hourly(2))

    answers = [ask(descriptor({"token": token, "path": "/"})) for _ in range(3)]

    assert [it["overall_code"] for it in answers] == ["OK", "OK", "OVER_LIMIT"]
    status = answers[0]["statuses"][0]
    assert status["code"] == "OK"
    assert status["current_limit"] == {"name": "hourly", "requests_per_unit": 2, "unit": "HOUR"}
    assert status["limit_remaining"] == 1
    assert 0 < int(status["duration_until_reset"].removesuffix("s")) <= 3_600
    assert headers(answers[0])["ratelimit-policy"] == '"hourly";q=2;w=3600'
    assert headers(answers[0])["ratelimit"].startswith('"hourly";r=1;t=')


def test_denial_has_the_fields_and_body_of_other_doors(plain: Gateway, ask: Asking) -> None:
    """A client cannot tell by a denial which door it came through."""
    token = plain.token(hourly(0))

    answer = ask(descriptor({"token": token}))

    assert answer["statuses"][0]["code"] == "OVER_LIMIT"
    assert headers(answer)["content-type"] == "application/problem+json"
    assert headers(answer)["sluicegate-denial"] == "cost_exceeds_capacity"
    assert "content-length" not in headers(answer)  # Envoy measures the body itself
    assert len(answer["raw_body"]) > 100


@pytest.mark.parametrize("key", ["token", "authorization", "x-api-key", "api_key"])
def test_token_may_be_a_whole_authorization_field(plain: Gateway, ask: Asking, key: str) -> None:
    """An Envoy copies the field as it is."""
    token = plain.token(hourly(1))

    codes = [ask(descriptor({key: shown}))["overall_code"] for shown in (f"Bearer {token}", token)]

    assert codes == ["OK", "OVER_LIMIT"]


def test_credentials_for_the_upstream_do_not_hide_the_token(plain: Gateway, ask: Asking) -> None:
    """Of two tokens the well-formed one counts, as in the header fields of a request."""
    token = plain.token(hourly(5))

    answers = [
        ask(descriptor({"authorization": "Basic bm9ib2R5"}), descriptor({"x-api-key": token})),
        ask(descriptor({"x-api-key": token, "authorization": "Bearer sk-1"})),
        ask(descriptor({"x-api-key": "", "authorization": f"Bearer {token}"})),
    ]

    assert [remaining_in(it) for it in answers] == [4, 3, 2]


@pytest.mark.parametrize("shown", ["", "nonsense", "Bearer ", "sg_live_" + "0" * 49, "gebühr"])
def test_wrong_token_is_never_anonymous(plain: Gateway, ask: Asking, shown: str) -> None:
    """Who shows a token and has none is refused, even where requests without a token pass."""
    slug = plain.anonymous(hourly(1_000))

    assert ask(descriptor({"token": shown}), domain=slug)["overall_code"] == "OVER_LIMIT"
    assert ask(descriptor({"remote_address": "192.0.2.1"}), domain=slug)["overall_code"] == "OK"


def test_descriptors_without_a_token_count_for_the_project_of_the_domain(plain: Gateway, ask: Asking) -> None:
    """The descriptors of Envoy's own actions are enough, and the address is the attribute ip."""
    slug = plain.anonymous(hourly(1, partition_by=("ip",)))

    codes = [
        ask(descriptor({"generic_key": "web", "remote_address": address}), domain=slug)["overall_code"]
        for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2")
    ]

    assert codes == ["OK", "OVER_LIMIT", "OK"]


@pytest.mark.parametrize("domain", ["", "nobody", "Not A Slug", "x" * 200])
def test_unknown_domain_is_refused(ask: Asking, domain: str) -> None:
    """A domain that is no project is no open door."""
    assert ask(descriptor({"remote_address": "192.0.2.1"}), domain=domain)["overall_code"] == "OVER_LIMIT"


def test_path_is_matched_without_its_query_and_decoded(plain: Gateway, ask: Asking) -> None:
    """No spelling of a path escapes its limit: Envoy sends it as the client wrote it."""
    token = plain.token(hourly(1, match=Match(path="/chat")))

    paths = ["/chat", "/chat?x=1", "/%63hat", "/other"]
    codes = [ask(descriptor({"token": token, "path": path}))["overall_code"] for path in paths]

    assert codes == ["OK", "OVER_LIMIT", "OVER_LIMIT", "OK"]


def test_descriptors_of_a_call_are_one_request(plain: Gateway, ask: Asking) -> None:
    """A call is charged once, however many descriptors describe it, and one of its statuses tells the limit."""
    token = plain.token(hourly(10, match=Match(attributes={"tier": "gold"})))

    answer = ask(descriptor({"token": token}), descriptor({"token": token, "tier": "gold"}), descriptor({"a": "b"}))

    assert [it["code"] for it in answer["statuses"]] == ["OK"] * 3
    assert [it.get("limit_remaining") for it in answer["statuses"]] == [9, None, None]


def test_two_tokens_are_refused(plain: Gateway, ask: Asking) -> None:
    """Which of them asks is not guessed."""
    token = plain.token(hourly(10))

    answer = ask(descriptor({"token": token}), descriptor({"token": plain.token(hourly(10))}))

    assert [it["code"] for it in answer["statuses"]] == ["OVER_LIMIT", "OVER_LIMIT"]
    assert remaining_in(ask(descriptor({"token": token}))) == 9


def test_two_values_in_one_descriptor_are_refused(plain: Gateway, ask: Asking) -> None:
    """Which of them counts is not guessed either."""
    token = plain.token(hourly(10))
    entries = [{"key": "token", "value": token}, {"key": "tier", "value": "a"}, {"key": "tier", "value": "b"}]

    answer = ask({"entries": entries})

    assert "'tier' must have one value in a descriptor, got two." in body(answer)


PER_SERVICE = Limit(name="service", quota=3, window_seconds=3600, partition_by=("service",))


@pytest.mark.parametrize(
    ("services", "left"), [(["a", "b"], [2, 2, 3]), (["a", "a"], [2, 3, 3]), (["a", "b", "c", "b"], [2, 2, 2])]
)
def test_each_value_of_a_key_is_charged_once(plain: Gateway, ask: Asking, services: list[str], left: list[int]) -> None:
    """Also when the message is known. What does not look at the key is charged once."""
    token = plain.token(PER_SERVICE, hourly(10))
    call = [descriptor({"token": token, "service": service}) for service in services]

    def look(service: str) -> int:
        answer = ask(descriptor({"token": token, "service": service}, hitsAddend=0))
        return int(re.search('"service";r=([0-9]+)', headers(answer)["ratelimit"])[1])

    first = ask(*call)
    assert (first["overall_code"], len(first["statuses"])) == ("OK", len(services))
    assert [look(service) for service in "abc"] == left
    again = [ask(*call)["overall_code"] for _ in range(3)]
    assert again == ["OK", "OK", "OVER_LIMIT"]
    # The fourth call was charged to nothing: three of ten requests are used.
    assert remaining_in(ask(descriptor({"token": token}, hitsAddend=0))) == 7
    assert [look(service) for service in "abc"] == [3 - 3 * (3 - it) for it in left]


def test_several_values_of_a_key_need_one_call_to_the_store(plain: Gateway, ask: Asking, server: ValkeyServer) -> None:
    """A few calls more are of the background."""
    token = plain.token(replace(PER_SERVICE, quota=1_000))
    call = [descriptor({"token": token, "service": service}) for service in "abc"]
    ask(*call)
    with redis.Redis.from_url(server.url) as store:
        before = store.info("commandstats")["cmdstat_fcall"]["calls"]
        assert [ask(*call)["overall_code"] for _ in range(20)] == ["OK"] * 20
        assert 20 <= store.info("commandstats")["cmdstat_fcall"]["calls"] - before < 35


@pytest.mark.parametrize(
    ("more", "own", "charged"),
    [
        ({}, {}, 1),
        ({"hitsAddend": 3}, {}, 3),
        ({"hitsAddend": 3}, {"hitsAddend": 5}, 5),
        ({"hitsAddend": 3}, {"hitsAddend": 0}, 0),
        ({}, {"hitsAddend": 0}, 0),
        ({}, {"hitsAddend": 11}, 0),
        ({}, {"hitsAddend": 2**63}, 0),
    ],
)
def test_hits_are_the_cost(
    plain: Gateway, ask: Asking, more: dict[str, Any], own: dict[str, Any], charged: int
) -> None:
    """A descriptor's own hits replace those of the call, and 0 of them is a cost."""
    token = plain.token(hourly(10))

    ask(descriptor({"token": token}, **own), **more)

    assert remaining_in(ask(descriptor({"token": token}, hitsAddend=0))) == 10 - charged


def test_hits_of_a_call_have_32_bits(plain: Gateway, ask: Asking, reader: Oracle) -> None:
    """Other bits of the number are dropped, as protobuf has it."""
    token = plain.token(hourly(10))
    message = reader.encode(REQUEST, {"domain": "shop", "descriptors": [descriptor({"token": token})]})

    answers = [ask.message(message + write_integer(3, hits)) for hits in (2**32 + 4, 2**32)]

    assert [remaining_in(it) for it in answers] == [6, 5]


def test_a_call_without_descriptors_is_refused(plain: Gateway, ask: Asking) -> None:
    """It describes no request, so it is none of those without a token."""
    slug = plain.anonymous(hourly(10))

    answer = ask(domain=slug)

    assert answer["overall_code"] == "OVER_LIMIT"
    assert "descriptors: a call must have at least one." in body(answer)


def test_a_limit_of_a_descriptor_is_refused(plain: Gateway, ask: Asking, reader: Oracle) -> None:
    """An operator who sets one would believe that it holds."""
    token = plain.token(hourly(10))
    limit = {"requests_per_unit": 1, "unit": "HOUR"}
    request = {"domain": "shop", "descriptors": [descriptor({"token": token}, limit=limit)]}

    answer = ask.message(reader.encode(REQUEST, request))

    assert answer["overall_code"] == "OVER_LIMIT"
    assert "because policies set the limits" in body(answer)
    assert remaining_in(ask(descriptor({"token": token}, hitsAddend=0))) == 10


def test_more_entries_than_a_request_has_are_refused(plain: Gateway, ask: Asking) -> None:
    """Reading them would keep all other calls waiting."""
    token = plain.token(hourly(10))

    answer = ask(*[descriptor({"token": token, **{f"k{at}": "v" for at in range(20)}})] * 30)

    assert "descriptors: a call must have at most 512 entries." in body(answer)


def test_the_largest_cost_of_the_descriptors_counts(plain: Gateway, ask: Asking) -> None:
    """A descriptor that costs nothing does not make another one free."""
    token = plain.token(hourly(10))

    answer = ask(descriptor({"token": token}, hitsAddend=0), descriptor({"a": "b"}), hitsAddend=4)

    assert remaining_in(answer) == 6


@pytest.mark.parametrize(
    "limit",
    [
        hourly(10),
        Limit(name="hourly", algorithm="sliding_window", quota=10, window_seconds=3_600),
        Limit(name="hourly", algorithm="token_bucket", quota=10, window_seconds=36_000),
        Limit(name="hourly", algorithm="fixed_window", quota=10, calendar="day"),
    ],
    ids=lambda limit: f"{limit.algorithm}-{limit.consistency}-{limit.calendar}",
)
def test_negative_hits_give_back_and_never_above_full(plain: Gateway, ask: Asking, limit: Limit) -> None:
    """A refund brings back what was used, and a larger one no more than that."""
    token = plain.token(limit)
    ask(descriptor({"token": token}, hitsAddend=6))

    some = ask(descriptor({"token": token}, hitsAddend=4, isNegativeHits=True))
    after = remaining_in(ask(descriptor({"token": token}, hitsAddend=0)))
    ask(descriptor({"token": token}, hitsAddend=400, isNegativeHits=True))

    assert some["overall_code"] == "OK"
    assert after == 8
    assert remaining_in(ask(descriptor({"token": token}, hitsAddend=0))) == 10


def test_a_refund_leaves_leased_permits_out(plain: Gateway, ask: Asking) -> None:
    """Permits that a process holds are not given back by somebody who gives back more than was used."""
    token = plain.token(hourly(300, consistency="leased"))
    request = descriptor({"token": token})
    used = sum(ask(request)["overall_code"] == "OK" for _ in range(200))

    ask(descriptor({"token": token}, hitsAddend=1_000, isNegativeHits=True))

    assert used == 200
    assert 270 <= sum(ask(request)["overall_code"] == "OK" for _ in range(400)) <= 300


def test_a_refund_that_cannot_be_made_is_said(plain: Gateway, ask: Asking) -> None:
    """A log knows its charges by their instants only, so nothing of it is given back, nor of the limits beside it."""
    log = Limit(name="log", algorithm="sliding_log", quota=20, window_seconds=3_600)
    token = plain.token(log, hourly(10))
    ask(descriptor({"token": token}, hitsAddend=6))

    def is_said() -> bool:
        answer = ask(descriptor({"token": token}, hitsAddend=6, isNegativeHits=True))
        assert answer["overall_code"] == "OVER_LIMIT"
        return "cannot take permits back" in plain.service.log.read_text()

    assert eventually(is_said)  # the service warns of refused calls once a second
    assert remaining_in(ask(descriptor({"token": token}, hitsAddend=0))) == 4


def test_a_call_does_not_both_ask_and_refund(plain: Gateway, ask: Asking) -> None:
    """A refund never pays for the request that brings it."""
    token = plain.token(hourly(10))

    answer = ask(descriptor({"token": token}, hitsAddend=9, isNegativeHits=True), descriptor({"a": "b"}))

    assert answer["overall_code"] == "OVER_LIMIT"


def test_a_revoked_token_gets_no_refund(plain: Gateway, ask: Asking) -> None:
    """What is no decision on a limit is a decision on a token all the same."""
    token = plain.token(hourly(10))
    plain.published.revoke(token)
    plain.follow()

    assert ask(descriptor({"token": token}, isNegativeHits=True))["overall_code"] == "OVER_LIMIT"


def test_a_kept_message_obeys_a_change_at_once(plain: Gateway, ask: Asking) -> None:
    """A message that was met before is not decided by what was published before."""
    token = plain.token(hourly(10))
    answers = [ask(descriptor({"token": token})) for _ in range(3)]
    plain.published.revoke(token)
    plain.follow()

    assert [remaining_in(it) for it in answers] == [9, 8, 7]
    assert headers(ask(descriptor({"token": token})))["sluicegate-denial"] == "revoked"


@pytest.mark.parametrize("count", [1, 3])
def test_a_kept_message_is_answered_as_a_new_one(plain: Gateway, ask: Asking, count: int) -> None:
    """The statuses tell the limit with the least left, whichever way they are made."""
    limits = [Limit(name=f"l{n}", algorithm="fixed_window", quota=10 - n, window_seconds=3_600) for n in range(count)]
    token = plain.token(*limits, Limit(name="shadow", quota=1, window_seconds=60, mode="shadow"))

    new, kept = (ask(descriptor({"token": token})) for _ in range(2))

    names = [it["statuses"][0]["current_limit"].pop("name") for it in (new, kept)]
    assert names == [f"l{count - 1}"] * 2
    assert [remaining_in(it) for it in (new, kept)] == [10 - count, 9 - count]
    assert new["statuses"][0].keys() == kept["statuses"][0].keys()


def test_a_kept_message_obeys_a_limit_that_cannot_be_enforced(plain: Gateway, ask: Asking) -> None:
    """Slots that are added to a policy are refused from then on, and none is ever taken."""
    plain.published.policy("growing", hourly(10))
    token = plain.published.token(policy="growing", project="shop")
    plain.follow()
    before = [ask(descriptor({"token": token}))["overall_code"] for _ in range(2)]
    plain.published.policy(
        "growing", hourly(10), Limit(name="slots", algorithm="concurrency", quota=9, window_seconds=9)
    )
    plain.follow()

    assert before == ["OK", "OK"]
    assert [ask(descriptor({"token": token}))["overall_code"] for _ in range(2)] == ["OVER_LIMIT"] * 2


def test_leased_permits_are_neither_lost_nor_doubled(plain: Gateway, ask: Asking) -> None:
    """The fast road and the store count the same permits."""
    token = plain.token(hourly(300, consistency="leased"))

    codes = [ask(descriptor({"token": token}))["overall_code"] for _ in range(400)]

    assert codes.count("OK") == 300


@pytest.mark.parametrize(
    "limit",
    [
        Limit(name="slots", algorithm="concurrency", quota=10, window_seconds=60),
        hourly(10, charge_on=("2xx",)),
    ],
    ids=lambda limit: limit.name,
)
@pytest.mark.parametrize("negative", [False, True])
def test_limit_that_needs_the_response_is_refused(plain: Gateway, ask: Asking, limit: Limit, negative: bool) -> None:
    """What this protocol cannot keep is refused with its reason, and never leaks."""
    token = plain.token(limit)

    answer = ask(descriptor({"token": token}, isNegativeHits=negative))

    assert answer["overall_code"] == "OVER_LIMIT"


# With a mapping file.


def tokens(quota: int, unit: str = "tokens") -> Limit:
    return Limit(name="tokens", algorithm="fixed_window", quota=quota, window_seconds=3_600, unit=unit)


def test_an_entry_names_the_unit_of_hits(mapped: Gateway, ask_mapped: Asking) -> None:
    """One call charges requests and tokens, each by a descriptor of its own."""
    token = mapped.token(hourly(10), tokens(1_000))

    answer = ask_mapped(descriptor({"api_key": token}), descriptor({"unit": "tokens"}, hitsAddend=300))

    assert headers(answer)["ratelimit"].count(";r=") == 2
    assert '"tokens";r=700' in headers(answer)["ratelimit"]
    assert '"hourly";r=9' in headers(answer)["ratelimit"]


def test_the_value_of_an_entry_is_a_cost(mapped: Gateway, ask_mapped: Asking) -> None:
    """Costs that Envoy copies into entries are charged in the unit that the mapping names."""
    token = mapped.token(tokens(100, "input_tokens"))

    answers = [ask_mapped(descriptor({"token": token, "prompt": cost})) for cost in ("60", "60", "x", "-1")]

    assert [it["overall_code"] for it in answers] == ["OK", "OVER_LIMIT", "OVER_LIMIT", "OVER_LIMIT"]


def test_an_entry_has_the_name_that_the_mapping_gives(mapped: Gateway, ask_mapped: Asking) -> None:
    """Policies speak of tiers, and Envoy of generic keys."""
    token = mapped.token(hourly(0, match=Match(attributes={"tier": "free"})))

    codes = [ask_mapped(descriptor({"token": token, "generic_key": it}))["overall_code"] for it in ("free", "gold")]

    assert codes == ["OVER_LIMIT", "OK"]


def test_two_entries_of_one_attribute_must_agree(mapped: Gateway, ask_mapped: Asking) -> None:
    """An entry that is renamed does not hide one that has the name."""
    token = mapped.token(hourly(10))

    assert ask_mapped(descriptor({"token": token, "generic_key": "a", "tier": "b"}))["overall_code"] == "OVER_LIMIT"


def test_a_charge_afterwards_is_never_denied(mapped: Gateway, ask_mapped: Asking) -> None:
    """What was used is charged, whether it fits or not, and the next request has to wait for it."""
    token = mapped.token(hourly(10), tokens(100))
    ended = {"token": token, "after": "true", "unit": "tokens"}

    answers = [ask_mapped(descriptor(ended, hitsAddend=80)) for _ in range(2)]
    blocked = ask_mapped(descriptor({"token": token, "unit": "tokens"}, hitsAddend=1))

    assert [it["overall_code"] for it in answers] == ["OK", "OK"]
    assert blocked["overall_code"] == "OVER_LIMIT"
    assert '"hourly";r=10' in headers(blocked)["ratelimit"]  # nothing but tokens was charged


def test_an_estimate_is_replaced_afterwards(mapped: Gateway, ask_mapped: Asking) -> None:
    """One call gives an estimate back and charges what was used."""
    token = mapped.token(tokens(100))
    entries = {"token": token, "unit": "tokens"}
    ask_mapped(descriptor(entries, hitsAddend=70))

    ask_mapped(
        descriptor({**entries, "after": "true"}, hitsAddend=70, isNegativeHits=True),
        descriptor({**entries, "after": "true"}, hitsAddend=25),
    )

    assert remaining_in(ask_mapped(descriptor(entries, hitsAddend=0))) == 75


@pytest.mark.parametrize("key", ["unit", "after", "prompt"])
def test_two_values_of_what_is_no_attribute_are_refused(mapped: Gateway, ask_mapped: Asking, key: str) -> None:
    """The last of two costs or units would hide the first."""
    token = mapped.token(hourly(10))
    values = {"unit": ("requests", "tokens"), "after": ("true", "false"), "prompt": ("90", "1")}[key]
    entries = [{"key": "token", "value": token}, *({"key": key, "value": value} for value in values)]

    answer = ask_mapped({"entries": entries})

    assert answer["overall_code"] == "OVER_LIMIT"
    assert f"'{key}' must have one value" in body(answer)


@pytest.mark.parametrize("value", ["", "yes", "TRUE", "1"])
def test_after_has_two_values(mapped: Gateway, ask_mapped: Asking, value: str) -> None:
    """A typing error is no permission."""
    token = mapped.token(hourly(10))

    assert ask_mapped(descriptor({"token": token, "after": value}))["overall_code"] == "OVER_LIMIT"


def test_a_call_is_either_before_or_after(mapped: Gateway, ask_mapped: Asking) -> None:
    """A request is not admitted because another descriptor of its call says that it has ended."""
    token = mapped.token(hourly(0))

    answer = ask_mapped(descriptor({"token": token}), descriptor({"after": "true"}))

    assert answer["overall_code"] == "OVER_LIMIT"


def test_a_domain_stands_for_the_project_that_the_mapping_names(mapped: Gateway, ask_mapped: Asking) -> None:
    """Domains may have characters that a slug must not have."""
    mapped.published.policy("visitors", hourly(1))
    mapped.published.project("shop", anonymous_policy="visitors")
    mapped.follow()

    codes = [ask_mapped(descriptor({"a": "b"}), domain="edge_gateway")["overall_code"] for _ in range(2)]

    assert codes == ["OK", "OVER_LIMIT"]


def test_a_charge_afterwards_outlives_an_outage(tmp_path: Path, reader: Oracle) -> None:
    """What was used while the store was away is charged when it is back."""
    (tmp_path / "rls.toml").write_text(MAPPING)
    with ValkeyServer() as store, gateway(store, tmp_path, rls_mapping=str(tmp_path / "rls.toml")) as running:
        token = running.token(tokens(100))
        entries = {"token": token, "unit": "tokens"}
        with running.channel() as channel:
            ask = Asking(channel, reader)
            ask(descriptor(entries, hitsAddend=10))
            store.freeze()
            charged = [ask(descriptor({**entries, "after": "true"}, hitsAddend=20)) for _ in range(3)]
            store.thaw()

            assert [it["overall_code"] for it in charged] == ["OK"] * 3
            assert eventually(lambda: remaining_in(ask(descriptor(entries, hitsAddend=0))) == 30, 10)
