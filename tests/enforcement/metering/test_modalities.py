"""What is not text has a class of its own, also in what is reserved."""

import json

import pytest

from enforcement.metering.modalities import produced_classes
from enforcement.metering.opening import open_request
from enforcement.metering.prices import Price, Prices, Rates
from enforcement.metering.request import read_request
from enforcement.metering.settlement import MeteredReservation
from enforcement.model.limits import Limit
from enforcement.model.metered import FrozenMapping, Metering

USD = Limit(name="usd", unit="micros", quota=10**9, window_seconds=60)
CHAT, GEMINI = "/v1/chat/completions", "/v1beta/models/m:generateContent"
RATES = Rates(1_000_000, 4_000_000, input_audio=10_000_000, output_audio=20_000_000, output_image=30_000_000)
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
RULES = Metering(part_tokens=FrozenMapping({"audio": 100, "image": 50}))


def reserved(target, body, rates=RATES, rules=RULES):
    """The micros that a request of no text with a cap of 10 is reserved, which are the tokens of a million a micro."""
    asked = read_request("POST", target, lambda name: None, json.dumps(body).encode())
    opening = open_request(asked, [USD], rules, Prices(1, (Price("*", rates),)), 0)
    return opening.estimated_costs[0]


def chat(*parts, **more):
    messages = [{"role": "user", "content": list(parts)}]
    return {"model": "m", "messages": messages, "max_completion_tokens": 10, **more}


@pytest.mark.parametrize(
    ("body", "rates", "micros"),
    [
        (chat(SOUND), RATES, 100 * 10 + 10 * 4),
        (chat(PICTURE), RATES, 50 + 10 * 4),  # no rate of its own, so that of text
        (chat(PICTURE), RATES._replace(input_image=500_000), 25 + 10 * 4),
        (chat(SOUND, SOUND, PICTURE), RATES, 200 * 10 + 50 + 10 * 4),
        (chat(SOUND), Rates(1_000_000, 4_000_000), 100 + 10 * 4),
        (chat(modalities=["text", "audio"]), RATES, 10 * 20),
        (chat(modalities=["text"]), RATES, 10 * 4),
        (chat(modalities=["text", "audio"]), Rates(1_000_000, 4_000_000), 10 * 4),
        (chat(modalities="audio"), RATES, 10 * 4),  # no list
    ],
)
def test_a_typical_estimate_has_the_rate_of_each_class(body, rates, micros):
    assert reserved(CHAT, body, rates) == micros


@pytest.mark.parametrize("kinds", [["IMAGE"], ["TEXT", "IMAGE"]])
def test_an_image_that_gemini_is_asked_for_has_its_rate(kinds):
    """Of which it charges the dearest, and a bound does the same."""
    body = {"contents": [], "generationConfig": {"maxOutputTokens": 10, "responseModalities": kinds}}

    assert reserved(GEMINI, body) == 10 * 30
    outputs = reserved(GEMINI, body, rules=Metering(estimate="bound")) - reserved(
        GEMINI,
        {"contents": [], "generationConfig": {"maxOutputTokens": 10, "responseModalities": ["TEXT"]}},
        rules=Metering(estimate="bound"),
    )
    assert outputs >= 10 * (30 - 4)


def test_the_classes_are_those_of_the_format():
    assert produced_classes("gemini", {}, "gemini-2.5-flash-image") == ("output_image",)
    assert produced_classes("gemini", {"generation_config": {"response_modalities": ["Audio", 5]}}, "m") == (
        "output_audio",
    )
    assert produced_classes("openai-images", {"prompt": "x"}, "gpt-image-1") == ("output_image",)
    assert produced_classes("openai-chat", {"modalities": {"audio": 1}}, "m") == ()
    tools = [{"type": "function", "name": "f"}, {"type": "image_generation"}]
    assert produced_classes("openai-responses", {"tools": tools}, "gpt-4.1") == ("output_image",)
    assert produced_classes("openai-responses", {"tools": tools[:1]}, "gpt-4.1") == ()


@pytest.mark.parametrize(("kinds", "hides"), [(["text", "audio"], True), (["text"], False)])
def test_sound_and_images_are_hidden_output(kinds, hides):
    """A client that leaves after it has its image has seen no text of it."""
    body = json.dumps(chat(modalities=kinds, stream=True)).encode()
    asked = read_request("POST", CHAT, lambda name: None, body)

    assert asked.hides_output(whole=False) is hides


def test_what_was_observed_of_an_answer_keeps_the_classes_of_the_input():
    """A client left after four bytes of text, so that one token of the output is charged beside the sound."""
    asked = read_request("POST", CHAT, lambda name: None, json.dumps(chat(SOUND, stream=True)).encode())
    reservation = MeteredReservation.of(open_request(asked, [USD], RULES, Prices(1, (Price("*", RATES),)), 0), 0)
    reservation.answered(200, 1)
    reservation.streamed(4, 4, 2)

    assert reservation.client_left(3).costs == (100 * 10 + 4,)
