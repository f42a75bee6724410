"""
What consumers try, to get more from the provider than their budget holds. Each script is one trick, tried over and over
until the budget denies it. It imports nothing of the product.
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

CAP = 2_000
_TEXTS = (
    "all the king's horses and men ",
    "山川草木花鳥風月",
    "\U0001f600\U0001f984",
    'a "quoted"\n\\line\t',
    "\u00e9\u00fc",
)
PIXEL = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@dataclass
class Call:
    """
    A request of a consumer, and what the consumer does with the answer.

    Attributes:
        path: Where it goes.
        body: JSON, or the very bytes.
        play: How the provider behaves, see :mod:`~tests.adversary.provider`.
        leaves: When the consumer leaves: ``half`` of the body is sent, all is ``sent``, ``soon`` after that, the
            ``head`` is there, the ``text`` is there. ``slow`` reads to the end, but slowly. Empty: reads to the end.
        fields: Further header fields.
    """

    path: str
    body: Any
    play: dict[str, Any] = field(default_factory=dict)
    leaves: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Make = Callable[[Random], Call]


@dataclass(frozen=True)
class Script:
    """
    A trick.

    Attributes:
        name: Of the trick, and of its budget.
        finding: What showed it: a number of the review of metering, or a name of that of recorded traffic.
        make: Returns the next request.
        crowd: How many consumers try it at once.
        refused: Whether all such requests have to be refused.
        rules: Further rules of the policy.
        factor: How many of the first request the budget holds, by the provider's prices.
    """

    name: str
    finding: str
    make: Make
    crowd: int = 2
    refused: bool = False
    rules: tuple[tuple[str, Any], ...] = ()
    factor: float = 1


SCRIPTS: dict[str, Script] = {}


def script(finding: str, **more: Any) -> Callable[[Make], Make]:
    """Add a function to the scripts, under its name."""

    def add(make: Make) -> Make:
        name = make.__name__
        SCRIPTS[name] = Script(name, finding, make, **more)
        return make

    return add


# Requests in the formats.


def text_of(dice: Random, least: int = 20, most: int = 400) -> str:
    words = "".join(dice.choice(_TEXTS) for _ in range(dice.randint(2, 40)))
    length = dice.randint(least, most)
    return (words * (length // len(words) + 1))[:length]


def chat(dice: Random, *, model: str = "oak-1", stream: bool | None = None, cap: int | None = CAP, **more: Any) -> Any:
    stream = dice.random() < 0.5 if stream is None else stream
    body = {"model": model, "messages": [{"role": "user", "content": text_of(dice)}], "stream": stream}
    if cap is not None:
        body[dice.choice(("max_tokens", "max_completion_tokens"))] = cap
    return "/v1/chat/completions", {**body, **more}


def response(dice: Random, *, model: str = "oak-1", stream: bool | None = None, **more: Any) -> Any:
    stream = dice.random() < 0.5 if stream is None else stream
    body = {"model": model, "input": text_of(dice), "max_output_tokens": CAP, "stream": stream}
    return "/v1/responses", {**body, **more}


def message(dice: Random, *, model: str = "claude-ash-1", stream: bool | None = None, **more: Any) -> Any:
    stream = dice.random() < 0.5 if stream is None else stream
    content = [{"type": "text", "text": text_of(dice)}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": CAP, "stream": stream}
    return "/v1/messages", {**body, **more}


def gemini(dice: Random, *, model: str = "gemini-2.5-fir", stream: bool | None = None, **more: Any) -> Any:
    stream = dice.random() < 0.5 if stream is None else stream
    config = {"maxOutputTokens": CAP, **more.pop("config", {})}
    parts = [{"text": text_of(dice)}, *more.pop("parts", ())]
    body = {"contents": [{"role": "user", "parts": parts}], "generationConfig": config, **more}
    # Without alt=sse a stream is an array, which comes element by element.
    method = dice.choice(("streamGenerateContent?alt=sse", "streamGenerateContent")) if stream else "generateContent"
    return f"/v1beta/models/{model}:{method}", body


FORMATS = (chat, response, message, gemini)


def in_any(dice: Random, *, stream: bool | None = None) -> Any:
    """Return a request in one of the four formats."""
    return dice.choice(FORMATS)(dice, stream=stream)


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(dice: Random) -> bytes:
    return PIXEL + struct.pack(">II", dice.randint(16, 6_000), dice.randint(16, 6_000)) + b"\x08\x02\0\0\0" + bytes(12)


# Leaves.


@script("1: leaves when the text is there; the model has thought, and says so later", crowd=3)
def leaves_after_text(dice: Random) -> Call:
    return Call(*in_any(dice, stream=True), {"pause": 0.15}, "text")


@script("design: leaves when one of many answers is complete", crowd=3)
def leaves_the_others(dice: Random) -> Call:
    config = {"candidateCount": 8, "maxOutputTokens": 300}
    return Call(*gemini(dice, stream=True, config=config), {"pause": 0.15, "hidden": 0}, dice.choice(("text", "")))


@script("1: the same under on_disconnect free", crowd=3, rules=(("on_disconnect", "free"),))
def leaves_after_text_free(dice: Random) -> Call:
    return Call(*in_any(dice, stream=True), {"pause": 0.15}, "text")


@script("1: leaves as soon as the request is sent", crowd=3)
def leaves_at_once(dice: Random) -> Call:
    return Call(*in_any(dice), {"think": 0.1}, dice.choice(("sent", "soon")))


@script("1: leaves while the model thinks", crowd=3)
def leaves_while_it_thinks(dice: Random) -> Call:
    return Call(*in_any(dice, stream=True), {"think": 0.3}, "head")


@script("1: leaves an answer in one piece", crowd=3)
def leaves_before_the_piece(dice: Random) -> Call:
    return Call(*in_any(dice, stream=False), {"pause": 0.3}, "soon")


@script("1: the same under on_disconnect free", crowd=3, rules=(("on_disconnect", "free"),))
def leaves_before_the_piece_free(dice: Random) -> Call:
    return Call(*in_any(dice, stream=False), {"pause": 0.3}, "soon")


@script("2: leaves, and the provider goes on for longer than it is read", crowd=3)
def leaves_a_filler(dice: Random) -> Call:
    return Call(*in_any(dice, stream=True), {"end": "filler"}, "text")


@script("2: more leave at once than are read on", crowd=8)
def leaves_in_a_crowd(dice: Random) -> Call:
    return Call(*in_any(dice, stream=True), {"pause": 0.4}, "text")


@script("1: sends half of a request")
def sends_half(dice: Random) -> Call:
    leaves = "half" if dice.random() < 0.5 else ""
    return Call(*in_any(dice), leaves=leaves)


@script("1: reads slowly, and leaves")
def reads_slowly(dice: Random) -> Call:
    return Call(*in_any(dice, stream=True), {"pause": 0.1}, dice.choice(("slow", "text")))


@script("1: tries again with the same key after it has left", crowd=3)
def tries_again(dice: Random) -> Call:
    fields = {"idempotency-key": f"key-{dice.randrange(20)}"}
    return Call(*in_any(dice, stream=True), {"pause": 0.1}, dice.choice(("text", "head", "")), fields)


# What the provider does.


@script("1: the provider is silent from the begin", crowd=4)
def hears_nothing(dice: Random) -> Call:
    return Call(*in_any(dice), {"end": "mute"})


@script("1: the provider is silent after the text", crowd=4)
def hears_no_end(dice: Random) -> Call:
    return Call(*in_any(dice, stream=True), {"end": "silent"})


@script("1: something in between says that it has not waited")
def meets_a_gateway(dice: Random) -> Call:
    return Call(*in_any(dice), {"status": dice.choice((408, 499, 502, 504, *range(520, 528)))})


@script("design: an answer of no known form, or not all of one")
def meets_an_odd_answer(dice: Random) -> Call:
    return Call(*in_any(dice), {"status": dice.choice((200, 201, 202, 206, 301, 302, 307))})


@script("1: the answer breaks off")
def meets_a_break(dice: Random) -> Call:
    return Call(*in_any(dice), {"end": "break"})


@script("1: the connection ends before an answer")
def meets_a_reset(dice: Random) -> Call:
    return Call(*in_any(dice), {"end": "reset"})


@script("1: an encoding that nobody reads")
def answers_in_riddles(dice: Random) -> Call:
    return Call(*in_any(dice), {"packed": "zz"})


@script("1: a message breaks off, which has said what it has used so far")
def meets_a_broken_message(dice: Random) -> Call:
    return Call(*message(dice, stream=True), {"end": dice.choice(("break", "silent", "error"))})


@script("1: an event says that the answer has failed")
def meets_an_error(dice: Random) -> Call:
    return Call(*in_any(dice, stream=True), {"end": "error"})


@script("1: the usage so far is in each chunk, and the answer breaks off", crowd=3)
def hears_running_usage(dice: Random) -> Call:
    options = {"include_usage": dice.random() < 0.5, "continuous_usage_stats": True}
    play = {"end": dice.choice(("break", "error", "silent", "usage"))}
    return Call(*chat(dice, stream=True, stream_options=options), play)


@script("R8: the usage is never reported")
def hears_no_usage(dice: Random) -> Call:
    return Call(*in_any(dice), {"end": "untold"})


@script("R8: asks for no usage")
def wants_no_usage(dice: Random) -> Call:
    options = dice.choice(({"include_usage": False}, {}, None))
    return Call(*chat(dice, stream=True, stream_options=options))


# What raises a rate.


@script("3: a tier that the operator has entered")
def asks_for_a_tier(dice: Random) -> Call:
    tier = dice.choice(("priority", "PRIORITY", "flex"))
    return Call(*dice.choice((chat, response))(dice, service_tier=tier))


@script("3: a tier of which the operator has entered nothing")
def asks_for_an_unknown_tier(dice: Random) -> Call:
    if dice.random() < 0.3:
        return Call(*gemini(dice), fields={"x-vertex-ai-llm-shared-request-type": "priority"})
    if dice.random() < 0.4:
        return Call(*gemini(dice, **{dice.choice(("serviceTier", "service_tier")): "PRIORITY"}))
    return Call(*dice.choice((chat, response))(dice, model="oak-bare", service_tier="priority"))


@script("3: speed and region that the operator has entered")
def asks_for_speed(dice: Random) -> Call:
    return Call(*message(dice, **dice.choice(({"speed": "fast"}, {"inference_geo": "us"}))))


@script("3: speed and region of which the operator has entered nothing", refused=True)
def asks_for_unknown_speed(dice: Random) -> Call:
    return Call(*message(dice, model="claude-bare", **dice.choice(({"speed": "fast"}, {"inference_geo": "us"}))))


@script("3: a field that only the provider knows", refused=True)
def asks_for_turbo(dice: Random) -> Call:
    return Call(*dice.choice((chat, response, message))(dice, turbo=True))


@script("3: a field that the operator allows at twice the cost")
def asks_for_allowed_turbo(dice: Random) -> Call:
    return Call(*dice.choice((chat, response))(dice, allowed_turbo=True))


@script("3: sound in the answer")
def asks_for_sound(dice: Random) -> Call:
    more = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
    return Call(*chat(dice, model="gpt-4o-audio-elm", stream=False, **more))


@script("F1: pictures of Gemini")
def asks_for_pictures(dice: Random) -> Call:
    config = dice.choice(({}, {"responseModalities": ["TEXT", "IMAGE"]}, {"responseModalities": ["IMAGE"]}))
    return Call(*gemini(dice, model="gemini-2.5-fir-image", config=config))


@script("F2: pictures by a tool", refused=True)
def asks_for_drawing(dice: Random) -> Call:
    return Call(*response(dice, tools=[{"type": "image_generation"}]))


@script("R5: a container for code", refused=True)
def asks_for_a_container(dice: Random) -> Call:
    return Call(*response(dice, tools=[{"type": "code_interpreter", "container": {"type": "auto"}}]))


@script("3: models that search", refused=True)
def asks_a_searching_model(dice: Random) -> Call:
    return Call(*chat(dice, model=dice.choice(("gpt-5-search-preview", "oak-1:online", "oak-1:online:nitro"))))


@script("R1: searches by tools", refused=True)
def asks_for_searches(dice: Random) -> Call:
    return dice.choice((
        Call(*message(dice, tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}])),
        Call(*gemini(dice, tools=[{"googleSearch": {}}])),
        Call(*response(dice, tools=[{"type": "web_search"}])),
        Call(*chat(dice, web_search_options={})),
    ))  # fmt: skip


@script("4: writes to the cache, for five minutes or an hour", factor=2)
def writes_to_the_cache(dice: Random) -> Call:
    mark = dice.choice(({"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral", "ttl": "5m"}))
    content = [{"type": "text", "text": text_of(dice, 15_000, 20_000), "cache_control": mark}]
    more = {"messages": [{"role": "user", "content": content}], "max_tokens": 50}
    path, body = message(dice, model=dice.choice(("claude-ash-1", "claude-bare")), **more)
    # Some write the name of the mark with escapes.
    data = json.dumps(body).replace('"cache_control"', dice.choice(('"cache_control"', '"\\u0063ache_control"')))
    return Call(path, data.encode(), {"hidden": 0, "read": dice.choice((0, 30))})


@script("4: the same for an hour alone", factor=2)
def writes_for_an_hour(dice: Random) -> Call:
    content = [{"type": "text", "text": text_of(dice, 15_000, 20_000)}]
    content[0]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}  # type: ignore[assignment]
    return Call(*message(dice, messages=[{"role": "user", "content": content}], max_tokens=50))


@script("1: reads from the cache")
def reads_from_the_cache(dice: Random) -> Call:
    return Call(*in_any(dice), {"read": 90})


@script("F5: the tier of long requests", factor=2, crowd=1)
def asks_at_length(dice: Random) -> Call:
    text = "abcdefgh" * 25_100
    parts = [{"text": text if dice.random() < 0.5 else text[:150_000]}]
    return Call(*gemini(dice, model="gemini-2.5-long", parts=parts))


# What adds input.


@script("5: a text as a file", factor=2)
def sends_text_as_a_file(dice: Random) -> Call:
    text = text_of(dice, 25_000, 40_000).encode()
    inline = {"inlineData": {"mimeType": "text/plain", "data": base64.b64encode(text).decode()}}
    part = {"type": "file", "file": {"filename": "a.txt", "file_data": data_url("text/plain", text)}}
    return dice.choice((
        Call(*gemini(dice, parts=[inline], config={"maxOutputTokens": 20})),
        Call(*chat(dice, model="gpt-4o-elm", cap=20, messages=[{"role": "user", "content": [part]}])),
    ))  # fmt: skip


@script("5: a PDF, of which only the most is known", factor=2)
def sends_a_pdf(dice: Random) -> Call:
    data = b"%PDF-1.7 " + bytes(dice.randint(100, 3_000))
    source = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(data).decode()}
    more = {"messages": [{"role": "user", "content": [{"type": "document", "source": source}]}], "max_tokens": 50}
    inline = {"inlineData": {"mimeType": "application/pdf", "data": source["data"]}}
    return dice.choice((Call(*message(dice, **more)), Call(*gemini(dice, parts=[inline]))))


@script("5: a PDF as a picture, and a video as a file", refused=True)
def sends_other_data(dice: Random) -> Call:
    data = b"%PDF-1.7 " + bytes(dice.randint(100, 3_000))
    pdf = {"type": "image_url", "image_url": {"url": data_url("application/pdf", data)}}
    text = {"type": "image_url", "image_url": {"url": data_url("text/plain", text_of(dice, 25_000, 40_000).encode())}}
    clip = {"type": "file", "file": {"file_data": data_url("video/mp4", data)}}
    bare = {"type": "image_url", "image_url": {"url": data_url("", data)}}
    part = dice.choice((pdf, text, clip, bare))
    return Call(*chat(dice, model="gpt-4o-elm", cap=20, messages=[{"role": "user", "content": [part]}]))


@script("3: pictures in the request")
def sends_pictures(dice: Random) -> Call:
    url = data_url("image/png", picture(dice)) if dice.random() < 0.7 else "https://pictures.test/large.png"
    part = {"type": "image_url", "image_url": {"url": url}}
    image = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(picture(dice)).decode()}
    block = {"type": "image", "source": image}
    inline = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(picture(dice)).decode()}}
    return dice.choice((
        Call(*chat(dice, model="gpt-4o-elm", cap=20, messages=[{"role": "user", "content": [part] * 3}])),
        Call(*message(dice, messages=[{"role": "user", "content": [block] * 3}], max_tokens=20)),
        Call(*gemini(dice, parts=[inline] * 3, config={"maxOutputTokens": 20})),
    ))  # fmt: skip


@script("R4: sound in the request")
def sends_sound(dice: Random) -> Call:
    part = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    inline = {"inlineData": {"mimeType": "audio/wav", "data": "UklGRg=="}}
    play = {"seconds": dice.randint(1, 500)}
    more = {"messages": [{"role": "user", "content": [part]}]}
    return dice.choice((
        Call(*chat(dice, model="gpt-4o-audio-elm", cap=20, **more), play),
        Call(*gemini(dice, parts=[inline], config={"maxOutputTokens": 20}), play),
    ))  # fmt: skip


@script("6: context that the provider keeps, in any spelling", refused=True)
def uses_kept_context(dice: Random) -> Call:
    return dice.choice((
        Call(*chat(dice, extra_body={"google": {"cached_content": "cachedContents/1"}})),
        Call(*chat(dice, extra_body={"cached_content": "cachedContents/1"})),
        Call(*gemini(dice, cachedContent="cachedContents/1")),
        Call(*gemini(dice, cached_content="cachedContents/1")),
        Call(*response(dice, previous_response_id="resp_1")),
        Call(*response(dice, conversation="conv_1")),
    ))  # fmt: skip


@script("6: context that the provider keeps, in extra_body", refused=True)
def uses_extra_body(dice: Random) -> Call:
    return Call(*chat(dice, extra_body={"google": {"cached_content": "cachedContents/1"}}))


@script("F3: tools and schemas, about which the provider says more", crowd=2)
def gives_tools(dice: Random) -> Call:
    schema = {"type": "object", "properties": {f"field_{n}": {"type": "string"} for n in range(dice.randint(1, 5))}}
    function = {"name": "weather", "description": text_of(dice), "parameters": schema}
    declared = {"functionDeclarations": [function]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    cited = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text_of(dice)}}
    turn = {"role": "user", "content": [{**cited, "citations": {"enabled": True}}]}
    return dice.choice((
        Call(*message(dice, max_tokens=20, messages=[turn])),
        Call(*chat(dice, cap=20, tools=[{"type": "function", "function": function}])),
        Call(*chat(dice, cap=20, response_format=wanted)),
        Call(*response(dice, max_output_tokens=20, tools=[{"type": "function", **function}])),
        Call(*message(dice, max_tokens=20, tools=[{"name": "weather", "input_schema": schema}])),
        Call(*gemini(dice, tools=[declared], config={"maxOutputTokens": 20})),
    ))  # fmt: skip


@script("F3: a model that adds a prompt of its own")
def asks_a_verbose_model(dice: Random) -> Call:
    return Call(*chat(dice, model="llama-verbose", cap=50))


@script("F3: models and modes that call models by themselves", refused=True)
def asks_a_compound(dice: Random) -> Call:
    pro = Call(*response(dice, reasoning={"mode": "pro"}))
    return dice.choice((pro, Call(*chat(dice, model="groq/compound"))))


@script("12: names a cheap model in the path, and a dear one in the body, or as its fallback", refused=True)
def names_two_models(dice: Random) -> Call:
    path, body = chat(dice, model="gpt-4o-elm")
    if dice.random() < 0.5:
        return Call(f"/openai/deployments/llama-verbose{path[3:]}", body)
    return Call(path, {**body, "model": "llama-verbose", dice.choice(("models", "fallbacks")): ["gpt-4o-elm"]})


@script("3: what is predicted is charged beyond the cap", refused=True)
def predicts(dice: Random) -> Call:
    return Call(*chat(dice, prediction={"type": "content", "content": text_of(dice, 5_000, 9_000)}))


@script("1: many messages without text")
def sends_empty_messages(dice: Random) -> Call:
    count = dice.randint(50, 400)
    return dice.choice((
        Call(*chat(dice, cap=20, messages=[{"role": "user", "content": ""}] * count)),
        Call(*gemini(dice, contents=[{"role": "user", "parts": []}] * count, config={"maxOutputTokens": 20})),
    ))  # fmt: skip


@script("1: dense texts, in escapes")
def sends_dense_text(dice: Random) -> Call:
    path, body = chat(dice, cap=20, messages=[{"role": "user", "content": text_of(dice, 3_000, 6_000)}])
    data = json.dumps(body, ensure_ascii=dice.random() < 0.5, indent=dice.choice((None, 2)))
    return Call(path, data.encode())


@script("1: token ids, and their like")
def sends_tokens(dice: Random) -> Call:
    tokens = [dice.randrange(50_000) for _ in range(dice.randint(500, 3_000))]
    return Call("/v1/embeddings", {"model": "yew-embed", "input": dice.choice((tokens, [tokens] * 3, text_of(dice)))})


# What multiplies the output, or hides a cap.


@script("1: many answers at once")
def asks_for_many_answers(dice: Random) -> Call:
    count = dice.randint(2, 12)
    prompts = [text_of(dice) for _ in range(3)]
    many = {"model": "oak-1", "prompt": prompts, "max_tokens": 300, dice.choice(("n", "best_of")): count}
    return dice.choice((
        Call(*chat(dice, cap=300, n=count)),
        Call(*gemini(dice, config={"maxOutputTokens": 300, "candidateCount": count})),
        Call("/v1/completions", many),
    ))  # fmt: skip


@script("F6: names no cap", factor=0.1)
def names_no_cap(dice: Random) -> Call:
    path, body = in_any(dice)
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "generationConfig"):
        body.pop(name, None)
    if path == "/v1/messages":  # as the API refuses that
        body["max_tokens"] = 4_096
    return Call(path, body)


@script("design: has its cap lowered to what is left", rules=(("clamp_at_least", 20),))
def lets_itself_be_clamped(dice: Random) -> Call:
    more = dice.choice(({}, {"n": 3}, {"tools": [{"type": "function", "function": {"name": "weather"}}]}))
    return Call(*chat(dice, cap=dice.choice((CAP, 20 * CAP)), **more))


@script("1: names two caps")
def names_two_caps(dice: Random) -> Call:
    path, body = chat(dice, cap=None)
    return Call(path, {**body, "max_tokens": 1, "max_completion_tokens": CAP})


@script("design: a cap of 0, which some servers take for none", refused=True)
def names_a_cap_of_zero(dice: Random) -> Call:
    config = {"maxOutputTokens": 0}
    return dice.choice((
        Call(*chat(dice, cap=0)), Call(*response(dice, max_output_tokens=0)), Call(*gemini(dice, config=config))
    ))  # fmt: skip


@script("1: says a key twice", refused=True)
def says_a_key_twice(dice: Random) -> Call:
    path, body = chat(dice, cap=None)
    once = json.dumps(body)
    return Call(path, f'{once[:-1]}, "max_tokens": 1, "max_tokens": {CAP}}}'.encode())


@script("1: compresses the request", refused=True)
def compresses(dice: Random) -> Call:
    path, body = chat(dice)
    return Call(path, gzip.compress(json.dumps(body).encode()), fields={"content-encoding": "gzip"})


@script("1: goes on in the background", refused=False)
def goes_on_in_the_background(dice: Random) -> Call:
    return Call(*response(dice, stream=False, background=True), {"end": "untold"})


@script("honest: nothing of all that", crowd=3)
def is_honest(dice: Random) -> Call:
    return Call(*in_any(dice), {"output": dice.randint(100, CAP), "packed": dice.choice(("", "gzip"))})


@script("honest: provider refuses now and then")
def is_refused(dice: Random) -> Call:
    play = {"refuse": dice.choice((429, 500, 503, 529))} if dice.random() < 0.3 else {"output": dice.randint(500, CAP)}
    return Call(*in_any(dice), play)
