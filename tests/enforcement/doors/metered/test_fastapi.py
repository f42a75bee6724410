"""Metering in FastAPI: behind the middleware as it is, and by the dependency of an application without a proxy."""

import json
from typing import Annotated

import pytest
from anyio import from_thread
from fastapi import Body, Depends, FastAPI
from fastapi.responses import StreamingResponse

from enforcement.doors.asgi import LimitMiddleware
from enforcement.doors.fastapi import Admission, admit, install
from tests.enforcement.doors.metered.provider import CHAT, USAGE, WORD, ask, event
from tests.enforcement.world import fixed

TPM = fixed(100_000, name="tpm", unit="tokens")
HELLO = {"model": "gpt-x", "max_tokens": 500, "messages": [{"role": "user", "content": "x" * 400}]}
ANSWER = {"object": "chat.completion", "model": "gpt-x", "choices": [{"message": {"content": "hi"}}], "usage": USAGE}
LAST = {"object": "chat.completion.chunk", "model": "gpt-x", "choices": [], "usage": USAGE}
JSON = [(b"content-type", b"application/json")]
Held = Annotated[Admission, Depends(admit(costs={"tokens": 600}))]
Asked = Annotated[dict, Body()]


async def tokens_used(limiter, secret):
    (state,) = (await limiter.check(secret, {"requests": 0, "tokens": 0})).limits
    return state.quota - state.remaining


async def words(asked):
    """Stream as a provider does, which reports usage if it is asked to."""
    yield event(WORD)
    if (asked.get("stream_options") or {}).get("include_usage"):
        yield event(LAST)
    yield event(b"[DONE]")


def behind_the_middleware(limiter):
    app = FastAPI()

    @app.post(CHAT)
    async def chat(asked: Asked):
        return StreamingResponse(words(asked), media_type="text/event-stream") if asked.get("stream") else ANSWER

    app.add_middleware(LimitMiddleware, limiter=limiter, metered=True)
    return app


@pytest.mark.parametrize("stream", [False, True])
async def test_the_middleware_meters_a_fastapi_application(world, aio_limiter, stream):
    """The application reads the body that the meter has changed, and its answer is metered while it passes."""
    secret = world.everything(TPM)
    answer = await ask(behind_the_middleware(aio_limiter), secret, {**HELLO, "stream": stream}, headers=JSON)

    assert answer.status == 200
    assert (b'"usage"' in answer.body) is not stream
    assert await tokens_used(aio_limiter, secret) == 130


async def test_the_middleware_denies_with_the_providers_error(world, aio_limiter):
    secret = world.everything(fixed(5, name="tpm", unit="tokens"))
    answer = await ask(behind_the_middleware(aio_limiter), secret, HELLO)

    assert (answer.status, answer.headers["x-should-retry"]) == (429, "false")
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


def with_the_dependency(limiter):
    app = FastAPI()
    install(app, limiter)

    @app.post("/whole")
    async def whole(admission: Held):
        assert (await admission.settle_from(ANSWER)).usage.output == 30

    @app.post("/stream")
    async def stream(admission: Held):
        async def lines():
            async for chunk in admission.metered(events()):
                yield json.dumps(chunk)

        return StreamingResponse(lines())

    @app.post("/thread")
    def thread(admission: Held):
        from_thread.run(admission.settle_from, ANSWER)

    @app.post("/bad")
    async def bad(admission: Held):
        with pytest.raises(ValueError, match="response: must report its usage"):
            await admission.settle_from({**ANSWER, "usage": None})

    return app


async def events():
    for value in (WORD, LAST):
        yield value


@pytest.mark.parametrize(("path", "tokens"), [("/whole", 130), ("/thread", 130), ("/stream", 130), ("/bad", 600)])
async def test_an_application_settles_by_the_response_of_an_sdk(world, aio_limiter, path, tokens):
    """Without usage the estimate stays."""
    secret = world.everything(TPM)
    answer = await ask(with_the_dependency(aio_limiter), secret, {}, path)

    assert answer.status == 200
    assert await tokens_used(aio_limiter, secret) == tokens


async def test_an_exempt_request_settles_nothing():
    """No limit applies to it, and the code of the application is the same."""
    admission = Admission(None)
    assert await admission.settle_from(ANSWER) is None
    assert [chunk async for chunk in admission.metered(events())] == [WORD, LAST]
