"""A bound admits the fields that it knows, prices those that raise a rate, and refuses all others by name."""

import base64
import json
import struct

import pytest

from enforcement.metering.bound import field_rates
from enforcement.metering.exchange import MeteredExchange
from enforcement.metering.opening import RefusedOpening, open_request, refused_field
from enforcement.metering.prices import Price, Prices, Rates
from enforcement.metering.request import Unmetered, read_request
from enforcement.model.limits import Limit
from enforcement.model.metered import FrozenMapping, Metering

MONEY = Limit(name="usd", unit="micros", quota=10**12, calendar="month")
TPM = Limit(name="tpm", unit="tokens", quota=10**9, window_seconds=60)
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
EMBEDDINGS, COMPLETIONS, GEMINI = "/v1/embeddings", "/v1/completions", "/v1beta/models/m:generateContent"
HELLO = [{"role": "user", "content": "Hi"}]
PRICE = Price("m", Rates(1_000_000, 2_000_000, 100_000, 1_250_000))
CITED = {"type": "document", "source": {"type": "text", "data": "Hi"}, "citations": {"enabled": True}}
BODIES = {
    CHAT: {"messages": HELLO},
    RESPONSES: {"input": "Hi"},
    MESSAGES: {"messages": HELLO},
    EMBEDDINGS: {"input": "Hi"},
    COMPLETIONS: {"prompt": "Hi"},
    GEMINI: {"contents": [{"parts": [{"text": "Hi"}]}]},
}


def asked(path, body):
    return read_request("POST", path, {}.get, json.dumps({"model": "m", **body}, separators=(",", ":")).encode())


def opened(path, body, *, price=PRICE, limit=MONEY, allowed=None, **parts):
    rules = Metering("bound", 10, parts)
    return open_request(asked(path, body), [limit], rules, Prices(1, (price,)), 0, allowed=field_rates(allowed or {}))


def why(path, body, **more):
    refused = opened(path, body, **more)
    assert isinstance(refused, RefusedOpening), refused
    assert refused.reason == "unmetered"
    return refused.field, refused.detail


@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_field_that_nobody_knows_is_refused_by_name(path):
    """The sentence says what would admit it. A field that is null is as good as missing."""
    field, detail = why(path, {**BODIES[path], "turbo": True})

    assert field == "turbo"
    assert "the field turbo" in detail
    assert "allowed_fields of the upstream" in detail
    assert not isinstance(opened(path, {**BODIES[path], "turbo": None}), RefusedOpening)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "Hi", "note": "x"}]}, "messages.note"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "note": 1}]}]}, "messages.content.note"),
        (CHAT, {"messages": HELLO, "tools": [{"type": "function", "function": {"run": 1}}]}, "tools.function.run"),
        (CHAT, {"messages": HELLO, "extra_body": {"google": {"turbo": 1}}}, "extra_body.google.turbo"),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "x": 1}]}]}, "input.content.x"),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "text", "x": 1}]}]}, "messages.content.x"),
        (GEMINI, {"generationConfig": {"routingConfig": {}}}, "generationConfig.routingConfig"),
        (GEMINI, {"generation_config": {"routing_config": {}}}, "generation_config.routing_config"),
        (GEMINI, {"contents": [{"parts": [{"text": "Hi", "video_metadata": {"fps": 9}}]}]}, None),
    ],
)
def test_fields_inside_others_are_looked_at_too(path, body, field):
    """Also in arrays of arrays, which some servers take apart."""
    found, _ = why(path, {**BODIES[path], **body})
    assert field is None or found == field


@pytest.mark.parametrize("both", [("maxOutputTokens", "topK"), ("max_output_tokens", "top_k")])
def test_both_spellings_of_googles_fields_are_known(both):
    body = {"generationConfig": dict.fromkeys(both, 5), "safety_settings": [], "toolConfig": {}}
    assert not isinstance(opened(GEMINI, {**BODIES[GEMINI], **body}), RefusedOpening)


@pytest.mark.parametrize(
    ("allowed", "factor"), [({"turbo": "none"}, 1), ({"turbo": 2.5}, 2.5), ({"turbo": "1.5", "x": 9}, 1.5)]
)
def test_an_operator_allows_a_field_with_its_rate(allowed, factor):
    """The rate holds for what is reserved and for what is charged in the end."""
    body = {**BODIES[CHAT], "turbo": True}
    opening = opened(CHAT, body, allowed=allowed)
    usual = opened(CHAT, body, allowed={"turbo": "none"})

    assert opening.estimated_costs[0] == pytest.approx(usual.estimated_costs[0] * factor, abs=1)
    assert opening.price.rates.output == 2_000_000 * factor


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"turbo": 0.5}, "turbo must have 'none' or a number from 1 to 1000"),
        ({"turbo": "free"}, "turbo must have 'none'"),
        ({"turbo": True}, "got True"),
        ({"turbo": 1.0001}, "three decimals"),
        ({"turbo": "NaN"}, "three decimals"),
        ({"": "none"}, "must name fields"),
        ({"a..b": "none"}, "must name fields"),
        ({f"f{i}": "none" for i in range(101)}, "at most 100 fields"),
    ],
)
def test_allowed_fields_that_break_a_rule_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        field_rates(fields)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (MESSAGES, {"speed": "fast"}, "speed=fast"),
        (MESSAGES, {"inference_geo": "us"}, "inference_geo=us"),
        (CHAT, {"service_tier": "scale"}, "service_tier=scale"),
        (CHAT, {"modalities": ["text", "audio"]}, "output_audio"),
        (GEMINI, {"generationConfig": {"responseModalities": ["IMAGE"]}}, "output_image"),
        (GEMINI, {"serviceTier": "turbo"}, "service_tier=turbo"),
    ],
)
def test_what_raises_a_rate_needs_a_rate(path, body, name):
    """The price of the model has none of these. A limit of tokens alone does not ask for one."""
    field, detail = why(path, {**BODIES[path], **body})

    assert field == name
    assert f"another rate by {name}, which the price of m does not have" in detail
    assert not isinstance(opened(path, {**BODIES[path], **body}, limit=TPM), RefusedOpening)


@pytest.mark.parametrize("tier", [None, "auto", "default", "flex", "on_demand", "STANDARD"])
def test_usual_and_cheaper_tiers_cost_what_the_model_does(tier):
    usual = opened(CHAT, {**BODIES[CHAT], "service_tier": "default"}).estimated_costs
    assert opened(CHAT, {**BODIES[CHAT], "service_tier": tier}).estimated_costs[0] <= usual[0] + 10


def test_a_tier_whose_rate_is_published_is_reserved_by_it():
    usual, dear = (opened(RESPONSES, {"input": "Hi", "service_tier": name}) for name in ("default", "priority"))
    assert dear.estimated_costs[0] >= 2.5 * usual.estimated_costs[0]


@pytest.mark.parametrize("mark", ['"cache_control"', '"cache\\u005fcontrol"'])
def test_an_hour_in_the_cache_is_found_however_it_is_written(mark):
    body = b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"Hi",%s:{"ttl":"1h"}}]}]}'
    for price, rate in ((PRICE, 2), (Price("m", Rates(1_000_000, 2_000_000, cache_write_1h=3_000_000)), 3)):
        request = read_request("POST", MESSAGES, {}.get, body.replace(b"%s", mark.encode()))
        opening = open_request(request, [MONEY], Metering("bound", 10), Prices(1, (price,)), 0)
        assert opening.estimated_costs[0] == rate * opening.estimate.input + 20


def test_the_input_is_reserved_at_its_dearest_class():
    """Anthropic charges more for what it writes to a cache than for what it reads as usual."""
    opening = opened(MESSAGES, {"messages": [{"role": "user", "content": "x" * 20_000}]})
    assert opening.estimated_costs[0] == -(-opening.estimate.input * 5 // 4) + 2 * 10


def test_a_lower_tier_of_the_price_is_reserved_if_it_is_dearer():
    price = Price("m", Rates(4_000_000, 0), tiers=((10, Rates(1_000_000, 0)), (10**6, Rates(9_000_000, 0))))
    opening = opened(MESSAGES, BODIES[MESSAGES], price=price)
    assert opening.estimated_costs[0] == 4 * opening.estimate.input


def test_the_dearest_weight_of_the_input_counts():
    limit = Limit(name="t", unit="tokens", quota=10**9, window_seconds=60, weights={"input": 0, "cache_write": 2_000})
    opening = opened(MESSAGES, BODIES[MESSAGES], limit=limit)
    assert opening.estimated_costs == (2 * opening.estimate.input + 10,)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"extra_body": {"google": {"cached_content": "c"}}}),
        (CHAT, {"extra_body": {"cachedContent": "c"}}),
        (CHAT, {"google": {"cachedContent": "c"}}),
        (RESPONSES, {"conversation": "c"}),
        (GEMINI, {"cached_content": "c"}),
        (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}),
    ],
)
def test_context_that_the_provider_keeps_has_no_bound(path, body):
    assert "context that the provider keeps" in why(path, {**BODIES[path], **body})[1]


@pytest.mark.parametrize(
    "model",
    ["groq/compound", "compound-mini", "perplexity/sonar-pro", "gpt-4o-search-preview", "m:online", "m:online:floor"],
)
def test_systems_that_search_by_themselves_have_no_bound(model):
    price = Price("*", PRICE.rates)
    assert "by itself" in why(CHAT, {"model": model, "messages": HELLO}, price=price)[1]
    typical = open_request(asked(CHAT, {"model": model, **BODIES[CHAT]}), [MONEY], Metering(), Prices(1, (price,)), 0)
    assert not isinstance(typical, RefusedOpening)


def test_an_unknown_mode_of_reasoning_has_no_bound():
    assert "reasoning.mode 'pro'" in why(RESPONSES, {"input": "Hi", "reasoning": {"mode": "pro"}})[1]
    assert not isinstance(opened(RESPONSES, {"input": "Hi", "reasoning": {"effort": "high"}}), RefusedOpening)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (CHAT, {"functions": [{"name": "f"}]}),
        (CHAT, {"response_format": {"type": "json_object"}}),
        (RESPONSES, {"tools": [{"type": "function", "name": "f"}]}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "schema": {}}}}),
        (MESSAGES, {"tools": [{"name": "f"}]}),
        (MESSAGES, {"messages": [{"role": "user", "content": [CITED]}]}),
        (GEMINI, {"tools": [{"functionDeclarations": [{"name": "f"}]}]}),
        (GEMINI, {"generationConfig": {"responseSchema": {"type": "OBJECT"}}}),
    ],
)
def test_what_a_provider_adds_for_tools_and_schemas_counts_in_every_format(path, body):
    before = opened(path, BODIES[path]).estimate.input
    assert opened(path, {**BODIES[path], **body}).estimate.input >= before + 1_024


def test_the_price_of_a_model_may_say_that_its_provider_adds_more():
    dear = Price("m", PRICE.rates, added_tokens=5_000)
    usual = opened(CHAT, BODIES[CHAT]).estimate.input
    assert opened(CHAT, BODIES[CHAT], price=dear).estimate.input == usual + 5_000


def png(width, height):
    return base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height)).decode()


def test_a_picture_counts_by_its_size_and_one_by_address_as_the_most():
    """The formula is that of the model. A number of the policy counts if it is higher."""

    def picture(url):
        part = {"type": "image_url", "image_url": {"url": url}}
        return {"model": "gpt-4o", "messages": [{"role": "user", "content": [part]}]}

    price, data = Price("gpt-4o", PRICE.rates), f"data:image/png;base64,{png(512, 512)}"
    small = opened(CHAT, picture(data), price=price).estimate.input
    by_address = opened(CHAT, picture("https://example.org/" + "a" * (len(data) - 20)), price=price).estimate.input

    assert by_address - small == 8 * 170 - 170
    assert opened(CHAT, picture(data), price=price, image=1_000).estimate.input == small + 1_000 - 255
    assert "part_tokens: must have a number for image" in why(CHAT, {**picture(data), "model": "m"})[1]


@pytest.mark.parametrize("kind", ["text/plain", "TEXT/CSV; charset=utf-8", "application/json", "image/svg+xml"])
def test_a_text_that_is_sent_as_a_file_counts_by_its_bytes(kind):
    data = base64.b64encode(b"word " * 2_000).decode()
    parts = [{"inlineData": {"mimeType": kind, "data": data}}]
    if kind == "image/svg+xml":
        parts = [{"inlineData": {"mimeType": "application/atom+xml", "data": data}}]
    request = asked(GEMINI, {"contents": [{"parts": parts}]})

    assert (request.text_bytes, request.parts) == (10_000, {})
    assert 10_000 < opened(GEMINI, {"contents": [{"parts": parts}]}).estimate.input < 10_400


def test_a_pdf_counts_as_the_most_that_its_provider_takes():
    """Whatever it calls itself, and as the policy or the price of the model says."""
    pdf = base64.b64encode(b"%PDF-1.7 and more").decode()
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "file", "file": {"file_data": f"data:text/plain;base64,{pdf}"}}]}
        ]
    }
    assert "part_tokens: must have a number for file" in why(CHAT, body)[1]
    priced = opened(CHAT, body, price=Price("m", PRICE.rates, part_tokens=FrozenMapping({"file": 90_000})))
    assert priced.estimate.input > 90_000
    assert opened(CHAT, body, file=70_000).estimate.input > 70_000


def test_names_of_results_of_tools_are_text():
    parts = [{"functionResponse": {"name": "f" * 100, "response": {}}}]
    assert asked(GEMINI, {"contents": [{"parts": parts}]}).text_bytes == 100


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/messages/count_tokens", {"model": "m"}, "m"),
        ("/v1/responses/input_tokens", {}, None),
        ("/v1beta/models/m:countTokens", {}, "m"),
        ("/model/anthropic.claude-v1%3A0/count-tokens", {}, "anthropic.claude-v1:0"),
        ("/v1/tokenize", {"model": "m", "text": "Hi"}, "m"),
    ],
)
def test_calls_that_count_tokens_cost_nothing(path, body, model):
    """Their model needs no price."""
    request = read_request("POST", path, {}.get, json.dumps(body).encode())
    for estimate in ("typical", "bound"):
        opening = open_request(request, [MONEY, TPM], Metering(estimate), Prices(1), 0)
        assert opening.estimated_costs == (0, 0)
        exchange = MeteredExchange(opening, 0)
        exchange.answered(200, None, 1)
        _, settlement = exchange.ended(2, whole=True)
        assert (settlement.settled_as, settlement.costs) == ("exact", (0, 0))
    assert request.attributes.get("model") == model


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/messages/batches", "a batch is answered"),
        ("/v1/batches", "a batch is answered"),
        ("/v1beta/models/m:batchGenerateContent", "a batch is answered"),
        ("/v1/realtime/client_secrets", "a realtime session"),
        ("/openai/v1/realtime/calls?webrtcfilter=on", "a realtime session"),
        ("/v1/threads/t/runs", "a run goes on"),
        ("/v1/threads/runs", "a run goes on"),
        ("/v1/threads/t/runs/r/submit_tool_outputs", "a run goes on"),
        ("/v2/rerank", "reranking"),
        ("/v1/chat", "Writer"),
        ("/ml/v1/text/generation", "watsonx"),
        ("/api/chat", "Ollama"),
        ("/v1/complete", "text completions of Anthropic"),
    ],
)
def test_what_no_meter_reads_is_refused_with_a_sentence_that_names_it(path, words):
    request = read_request("POST", path, {}.get, b'{"model":"m"}')
    assert isinstance(request, Unmetered)
    refused = open_request(request, [MONEY], Metering(), Prices(1), 0)
    assert words in refused.detail
    assert refused.detail.startswith("The cost of this request cannot be read: ")


def test_a_look_at_a_request_says_why_a_bound_would_refuse_it():
    prices = Prices(1, (PRICE,))
    assert refused_field(asked(CHAT, BODIES[CHAT]), prices, 0) == ""
    assert refused_field(asked(CHAT, {**BODIES[CHAT], "turbo": 1}), prices, 0) == "turbo"
    assert refused_field(asked(MESSAGES, {**BODIES[MESSAGES], "speed": "fast"}), prices, 0) == "speed=fast"
    assert "keeps" in refused_field(asked(RESPONSES, {"input": "Hi", "conversation": "c"}), prices, 0)


def test_a_picture_beside_an_address_counts_as_the_most():
    """The server may take the one or the other."""
    price, data = Price("claude-3", PRICE.rates), png(10, 10)
    tokens = []
    for source in ({"data": data}, {"data": data, "url": "https://x/h.png"}):
        block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", **source}}
        body = {"model": "claude-3", "messages": [{"role": "user", "content": [block]}]}
        tokens.append(opened(MESSAGES, body, price=price).estimate.input)
    assert tokens[1] - tokens[0] > 4_000


@pytest.mark.parametrize("snake", ["response_modalities", "responseModalities"])
def test_both_spellings_of_modalities_count(snake):
    for words in (["IMAGE"], ["TEXT"]), (["TEXT"], ["IMAGE"]):
        config = dict(zip(("responseModalities", snake), words, strict=True))
        if "IMAGE" in str(config):
            assert why(GEMINI, {**BODIES[GEMINI], "generationConfig": config})[0] == "output_image"
    both = {"responseModalities": ["IMAGE"], "response_modalities": ["TEXT"]}
    price = Price("m", PRICE.rates._replace(output_image=9_000_000))
    opening = opened(GEMINI, {**BODIES[GEMINI], "generationConfig": both}, price=price)
    assert opening.estimate.priced_by.outputs == ("output_image",)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"extra_body": [{"cached_content": "c"}]}, "extra_body"),
        (CHAT, {"google": [{"cachedContent": "c"}]}, "google"),
        (RESPONSES, {"n": 2}, "n"),
        ("/model/openai.gpt-oss/invoke", {"messages": [{"content": [{"text": "x"}]}], "max_tokens": 9}, "max_tokens"),
        ("/model/openai.gpt-oss/invoke", {"messages": [{"content": [{"text": "x"}]}], "n": 2}, "n"),
        ("/model/amazon.nova/invoke", {"messages": HELLO, "toolConfig": {}, "max_tokens": 9}, "max_tokens"),
        ("/model/meta.llama/invoke", {"prompt": "x", "inputText": "y"}, "prompt"),
    ],
)
def test_a_field_in_a_place_where_nobody_reads_it_is_refused(path, body, field):
    data = json.dumps({**BODIES.get(path, {}), **({"model": "m"} if path in BODIES else {}), **body}).encode()
    request = read_request("POST", path, {}.get, data)
    refused = open_request(request, [MONEY], Metering("bound", 10), Prices(1, (Price("*", PRICE.rates),)), 0)
    assert isinstance(refused, RefusedOpening)
    assert refused.field == field


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO, "n": 2}),
        (COMPLETIONS, {"prompt": "Hi", "n": 2}),
        (RESPONSES, {"input": "Hi", "client_metadata": {"a": "b"}}),
        (RESPONSES, {"input": "Hi", "tools": [{"type": "local_shell"}]}),
        (MESSAGES, {"messages": HELLO, "tools": [{"type": "bash_20250124", "name": "bash"}]}),
        (
            MESSAGES,
            {
                "messages": HELLO,
                "tools": [
                    {"type": "text_editor_20250728", "name": "edit", "max_characters": 9},
                    {"type": "memory_20250818", "name": "memory"},
                ],
            },
        ),
        (MESSAGES, {"messages": HELLO, "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}),
        (MESSAGES, {"messages": HELLO, "system": [{"text": "x", "cache_control": {"scope": "global"}}]}),
    ],
)
def test_what_costs_no_more_than_its_text_is_admitted(path, body):
    assert not isinstance(opened(path, body), RefusedOpening)


def test_a_tool_of_the_client_counts_what_its_provider_says_of_it():
    tools = [{"type": "bash_20250124", "name": "bash"}, {"type": "memory_20250818", "name": "memory"}]
    assert opened(MESSAGES, {"messages": HELLO, "tools": tools}).estimate.input > 3 * 1_024


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        (MESSAGES, {"messages": HELLO, "tools": [{"type": "bash_29990101", "name": "bash"}]}, "bash_29990101"),
        (MESSAGES, {"messages": HELLO, "context_management": {"edits": [{"type": "compact_20260112"}]}}, "context"),
        (MESSAGES, {"messages": HELLO, "context_management": {"edits": [7]}}, "context_management"),
        (MESSAGES, {"messages": HELLO, "context_management": {"edits": [], "x": 1}}, "context_management"),
        (RESPONSES, {"input": [{"type": "additional_tools", "tools": [{"type": "web_search"}]}]}, "web_search"),
        (RESPONSES, {"input": [{"type": "tool_search_output", "tools": [{"type": "mcp"}]}]}, "mcp"),
        (RESPONSES, {"input": [{"role": "user", "content": "x", "tools": [{"type": "mcp"}]}]}, "mcp"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, "cap of 0"),
        (RESPONSES, {"input": "Hi", "max_output_tokens": 0}, "cap of 0"),
        (GEMINI, {**BODIES[GEMINI], "generationConfig": {"maxOutputTokens": 0}}, "cap of 0"),
    ],
)
def test_what_has_no_bound_is_refused_with_its_name(path, body, word):
    assert word in why(path, body)[1]


def test_a_dearer_model_in_the_body_than_in_the_path_has_no_bound():
    """Azure goes by the path, and other servers by the body. One that costs no more, or has no price, does no harm."""
    book = Prices(1, (PRICE, Price("dear", Rates(2_000_000, 9_000_000)), Price("cheap", Rates(1, 1))))

    def admitted(model):
        data = json.dumps({"model": model, "messages": HELLO}).encode()
        request = read_request("POST", "/openai/deployments/m/chat/completions", {}.get, data)
        return open_request(request, [MONEY], Metering("bound", 10), book, 0)

    assert "names the model 'm', and its body the dearer 'dear'" in admitted("dear").detail
    assert not any(isinstance(admitted(model), RefusedOpening) for model in ("m", "cheap", "gpt-none", 7, None))


PDF, CLIP = "data:application/pdf;base64,JVBERi0=", "DATA:video/mp4;base64,AAAA"


@pytest.mark.parametrize(
    ("path", "part", "kind"),
    [
        (CHAT, {"type": "image_url", "image_url": {"url": PDF}}, "application/pdf"),
        (CHAT, {"type": "image_url", "image_url": {"url": f" {PDF}"}}, "application/pdf"),
        (CHAT, {"type": "image_url", "image_url": {"url": "data:;base64,JVBERi0="}}, "none"),
        (CHAT, {"type": "image_url", "image_url": {"url": "https://x.test/a", "format": "video/mp4"}}, "video/mp4"),
        (CHAT, {"type": "file", "file": {"file_data": CLIP}}, "video/mp4"),
        (CHAT, {"type": "file", "file": {"file_id": "gs://x", "format": "audio/wav"}}, "audio/wav"),
        (RESPONSES, {"type": "input_image", "image_url": PDF}, "application/pdf"),
        (
            MESSAGES,
            {"type": "image", "source": {"type": "base64", "media_type": "text/plain", "data": "eA"}},
            "text/pl",
        ),
    ],
)
def test_data_of_another_type_than_its_part_has_no_bound(path, part, kind):
    """Some providers go by the type of the data alone, and a PDF may have more tokens than any picture."""
    field = "input" if path == RESPONSES else "messages"
    body = {field: [{"role": "user", "content": [part]}]}
    assert kind in why(path, body, image=2_000, file=9_000)[1]


@pytest.mark.parametrize("begin", [b"\n%PDF-1.7", b"x" * 500 + b"%PDF-1.4", b"PK\x03\x04", b"{\\rtf1"])
@pytest.mark.parametrize("blanks", ["", "\n\r!", "eA=="])
def test_what_is_packed_is_no_text(begin, blanks):
    data = blanks + base64.b64encode(begin + b"word " * 2_000).decode()
    request = asked(GEMINI, {"contents": [{"parts": [{"inlineData": {"mimeType": "text/plain", "data": data}}]}]})
    assert (request.text_bytes, request.parts) == (0, {"file": 1})


VERTEX = "/v1/projects/p/locations/global/publishers/google/models/m:generateContent"


def opened_with(path, header, body, estimate="bound", **more):
    request = read_request("POST", path, header.get, json.dumps(body).encode(), default_cap=10)
    return open_request(request, [MONEY], Metering(estimate), Prices(1, (Price("m", PRICE.rates),)), 0, **more)


@pytest.mark.parametrize(
    ("path", "name", "body"),
    [
        (VERTEX, "x-vertex-ai-llm-shared-request-type", BODIES[GEMINI]),
        ("/model/m/invoke", "x-amzn-bedrock-service-tier", {"messages": HELLO, "max_tokens": 10}),
    ],
)
def test_a_header_field_that_raises_the_price_is_reserved(path, name, body):
    """As the field of the body that says the same."""
    usual, flex, dear = (opened_with(path, {name: value}, body) for value in ("default", "flex", "Priority"))
    assert flex.estimated_costs == usual.estimated_costs
    assert dear.estimated_costs[0] == pytest.approx(2.5 * usual.estimated_costs[0], abs=3)  # each is rounded up
    refused = opened_with(path, {name: "turbo"}, body)
    assert isinstance(refused, RefusedOpening)
    assert refused.field == "service_tier=turbo"
    allowed = opened_with(path, {name: "turbo"}, body, allowed=field_rates({"service_tier=turbo": 4}))
    assert allowed.estimated_costs[0] == pytest.approx(4 * usual.estimated_costs[0], abs=4)


@pytest.mark.parametrize("estimate", ["typical", "bound"])
def test_what_an_answer_of_invoke_does_not_name_is_charged_by_the_request(estimate):
    body = {"messages": HELLO, "max_tokens": 10}
    opening = opened_with("/model/m/invoke", {"x-amzn-bedrock-service-tier": "priority"}, body, estimate)
    assert opening.price.rates.output == 2.5 * PRICE.rates.output
    slow = {"x-amzn-bedrock-performanceconfig-latency": "optimized"}
    assert isinstance(opened_with("/model/m/invoke", slow, body), RefusedOpening)


VIDEO = {"fileData": {"fileUri": "gs://x/a.mp4", "mimeType": "video/mp4"}}
TUBE = "https://www.you%74ube.com/watch?v=1"


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        (GEMINI, {"contents": {"parts": [VIDEO]}}, "a number for video"),
        (GEMINI, {"contents": [{"parts": VIDEO}]}, "a number for video"),
        (GEMINI, {"contents": {"parts": {"text": "x"}}, "tools": {"googleSearch": {}}}, "googleSearch"),
        (
            GEMINI,
            {"contents": [{"parts": [{"fileData": {"fileUri": TUBE, "mimeType": "text/plain"}}]}]},
            "a number for video",
        ),
        ("/v1beta/models/m:batchEmbedContents", {"requests": {"content": {"parts": VIDEO}}}, "a number for video"),
        (EMBEDDINGS, {"input": [{"image": "https://x.test/a.png"}]}, "a number for image"),
        (EMBEDDINGS, {"input": {"pdf": "https://x.test/a.pdf"}}, "a number for other"),
        (
            EMBEDDINGS,
            {"input": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "a number for image",
        ),
        (RESPONSES, {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "the provider keeps"),
        (RESPONSES, {"input": [{"type": "file_search_call", "id": "fs_1", "queries": ["x"]}]}, "the provider keeps"),
        (RESPONSES, {"input": [{"id": "msg_1", "content": None}]}, "the provider keeps"),
        ("/v2/chat", {"messages": HELLO, "max_tokens": 0}, "cap of 0"),
        ("/v1/chat", {"message": "x", "max_tokens": 0}, "cap of 0"),
        (COMPLETIONS, {"prompt": "x", "max_tokens": 0}, "cap of 0"),
        ("/model/m/invoke", {"inputText": "x", "textGenerationConfig": {"maxTokenCount": 0}}, "cap of 0"),
    ],
)
def test_what_stands_for_more_than_its_bytes_is_no_text(path, body, word):
    """One object in the place of a list, an address of a video, a picture to be embedded, and what an id stands for."""
    assert word in why(path, body, file=9)[1]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (GEMINI, {"contents": {"parts": {"text": "x"}}, "tools": {"functionDeclarations": {"name": "f"}}}),
        (EMBEDDINGS, {"input": [{"text": "x"}]}),
        (EMBEDDINGS, {"input": [{"content": [{"type": "text", "text": "x"}]}]}),
        (RESPONSES, {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}]}),
        (RESPONSES, {"input": [{"type": "message", "id": "msg_1", "role": "assistant", "content": "x"}]}),
        (COMPLETIONS, {"prompt": "x", "max_tokens": 0, "echo": True}),
        (MESSAGES, {"messages": HELLO, "max_tokens": 0}),
    ],
)
def test_the_same_with_all_that_it_costs_is_admitted(path, body):
    assert not isinstance(opened(path, body), RefusedOpening)


@pytest.mark.parametrize(("text", "each"), [("\ufdfa", 33), ("\U0001d160", 12), ("\u00e9", 2), ("\u4e2d", 3), ("a", 1)])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_text_counts_as_a_tokenizer_may_write_it(text, each, escaped):
    """Those of Claude, Qwen and Cohere bring it into a normal form first."""
    body = {"model": "m", "messages": [{"role": "user", "content": text * 1_000}], "max_tokens": 5}
    data = json.dumps(body, ensure_ascii=escaped).encode()
    opening = open_request(
        read_request("POST", MESSAGES, {}.get, data), [MONEY], Metering("bound"), Prices(1, (PRICE,)), 0
    )
    assert each * 1_000 < opening.estimate.input < each * 1_000 + 200


@pytest.mark.parametrize(
    ("kind", "data", "least"),
    [
        ("text/plain", b"\x86\x87" * 500, 3_000),
        ("text/plain; charset=iso-8859-7", b"ab" * 500, 3_000),
        ("text/plain", b"\x1b$B!!" * 200, 3_000),
        ("text/plain", "\ufdfa".encode() * 100, 3_300),
        ("text/plain; charset=UTF-8", "\u4e2d".encode() * 300, 900),
    ],
)
def test_a_file_in_another_character_set_counts_as_it_is_read(kind, data, least):
    """A character of one byte may be three of UTF-8, and three tokens."""
    part = {"inlineData": {"mimeType": kind, "data": base64.b64encode(data).decode()}}
    found = opened(GEMINI, {"contents": [{"parts": [part]}]}).estimate.input
    assert least < found < least + 300


@pytest.mark.parametrize(
    ("kind", "data"),
    [("text/plain", b"\xff\xfe-N"), ("text/plain; charset=utf-16le", b"-N"), ("text/plain", b"\xfe\xffN-")],
)
def test_a_wide_file_is_no_text(kind, data):
    part = {"inlineData": {"mimeType": kind, "data": base64.b64encode(data).decode()}}
    assert asked(GEMINI, {"contents": [{"parts": [part]}]}).parts == {"file": 1}


def test_numbers_count_as_they_may_be_written_out():
    """Whoever reads an argument of a tool as a number may give the model all of its digits."""

    def reserved(number):
        call = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": [1, 2]}}
        body = json.dumps({"model": "m", "messages": [{"role": "assistant", "content": [call]}], "max_tokens": 5})
        data = body.replace("[1, 2]", f"[{','.join([number] * 100)}]").encode()
        request = read_request("POST", MESSAGES, {}.get, data)
        return open_request(request, [MONEY], Metering("bound"), Prices(1, (PRICE,)), 0).estimate.input

    assert reserved("1e15") - reserved("1.15") == 100 * (len("1000000000000000.0") - 4)
    assert reserved("1E-300") - reserved("1.15") >= 100 * 300
    assert reserved("0e9") == reserved("0.0")
    assert reserved("1e-99999999") < 2_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO, "prompt_mode": "reasoning"}),
        (CHAT, {"messages": HELLO, "safe_prompt": True}),
        (
            "/model/m/converse",
            {
                "model": None,
                "messages": [{"content": [{"document": {"source": {"text": "x"}, "citations": CITED["citations"]}}]}],
            },
        ),
    ],
)
def test_a_prompt_of_the_provider_counts(path, body):
    assert 1_024 < opened(path, body).estimate.input < 1_300


def test_results_of_searches_that_are_to_be_cited_count_what_the_provider_says_of_that():
    cited = {"citations": {"enabled": True}, "content": [{"type": "text", "text": "x"}]}
    result = {"type": "search_result", "source": "x", "title": "x", **cited}
    assert 1_024 < opened(MESSAGES, {"messages": [{"role": "user", "content": [result]}]}).estimate.input < 1_500
    result = {"searchResult": {**cited, "content": [{"text": "x"}]}}
    messages = [{"role": "user", "content": [result]}]
    assert 1_024 < opened("/model/m/converse", {"model": None, "messages": messages}).estimate.input < 1_300


def test_a_picture_whose_request_says_how_many_tokens_it_has_is_refused():
    part = {"text": "x", "mediaResolution": {"level": "MEDIA_RESOLUTION_LOW", "numTokens": 9_999}}
    assert why(GEMINI, {"contents": [{"parts": [part]}]})[0] == "contents.parts.mediaResolution.numTokens"


@pytest.mark.parametrize(
    "path", ["/v1beta/openai/chat/completions", "/v1/projects/p/locations/l/endpoints/openapi/chat/completions"]
)
def test_nothing_is_left_out_of_googles_chat_completions(path):
    """Its total is the only count that has reasoning."""
    body = json.dumps({"model": "m", "messages": HELLO}).encode()
    for query in ("?fields=choices", "?%24fields=usage(prompt_tokens)", "?$httpHeaders=X-Goog-FieldMask%3Ausage"):
        assert read_request("POST", path + query, {}.get, body).reason == "bad_query"
    assert read_request("POST", path, {"x-goog-fieldmask": "choices"}.get, body).reason == "bad_query"
    assert read_request("POST", f"{path}?key=x", {}.get, body).format == "openai-chat"
    assert read_request("POST", f"{CHAT}?fields=x", {}.get, body).format == "openai-chat"


def test_a_path_whose_escapes_are_read_twice_names_no_model():
    body = {"messages": [{"content": [{"text": "x"}]}]}
    assert asked("/model/small%252F..%252Fdear/converse", body).reason == "format"
