"""
Call a provider with its own SDK.

It runs in an environment of its own (``docker/requirements/sdks.txt``), as a program that answers each line of JSON,
``[call, base URL, token, retries]``, by one: ``["ok", what the SDK returns]``, or ``["error", class, status, text,
tries after the first]``.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.repository import ROOT

ASKED = [{"role": "user", "content": "How is the weather in Paris?"}]
CLASSES = ("input", "cached_input", "cache_write", "output")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Sdks:
    """The program, as its caller sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, name: str, url: str, token: str, retries: int = 0) -> list[Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, url, token, retries]), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@contextmanager
def running() -> Iterator[Sdks]:
    """Run the program while the block runs."""
    from tests.apart import python_of

    command = [python_of("sdks"), "-m", __spec__.name]
    pipe = subprocess.PIPE
    environment = {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT) as process:
        try:
            yield Sdks(process)
        finally:
            process.terminate()


def main() -> None:
    for line in sys.stdin:
        name, url, token, retries = json.loads(line)
        try:
            answer = ["ok", CALLS[name](CLIENTS[name.partition("-")[0]](url, token, retries))]
        except Exception as exc:  # noqa: BLE001 - whatever the SDK raises is the answer
            status = getattr(exc, "status_code", None) or getattr(exc, "code", None)
            sent = (
                exc.response.request.headers if hasattr(exc, "body") else {}
            )  # Google's does not say how often it tried
            tries = int(sent.get("x-stainless-retry-count", 0))
            answer = ["error", type(exc).__name__, status, str(getattr(exc, "message", exc)), tries]
        print(json.dumps(answer), flush=True)


def _openai(url: str, token: str, retries: int) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=retries)


def _azure(url: str, token: str, retries: int) -> Any:
    from openai import AzureOpenAI

    return AzureOpenAI(azure_endpoint=url, api_version="2024-10-21", api_key=token, max_retries=retries)


def _anthropic(url: str, token: str, retries: int) -> Any:
    from anthropic import Anthropic

    return Anthropic(base_url=url, api_key=token, max_retries=retries)


def _gemini(url: str, token: str, retries: int) -> Any:
    from google import genai
    from google.genai import types

    retry = types.HttpRetryOptions(attempts=1 + retries, initial_delay=1.1, jitter=0.1) if retries else None
    return genai.Client(api_key=token, http_options=types.HttpOptions(base_url=url, retry_options=retry))


def _chat(client: Any) -> str:
    return client.chat.completions.create(model="gpt-x", messages=ASKED, max_tokens=20).choices[0].message.content


def _chat_stream(client: Any) -> list[Any]:
    chunks = list(client.chat.completions.create(model="gpt-x", messages=ASKED, max_tokens=20, stream=True))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return [said, any(chunk.usage for chunk in chunks)]


def _chat_tools(client: Any) -> list[str]:
    function = {"name": "weather", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    answer = client.chat.completions.create(model="gpt-x", messages=ASKED, max_tokens=20, tools=tools)
    call = answer.choices[0].message.tool_calls[0].function
    return [call.name, call.arguments]


def _chat_structured(client: Any) -> str:
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str

    answer = client.chat.completions.parse(model="gpt-x", messages=ASKED, max_tokens=20, response_format=Place)
    return answer.choices[0].message.parsed.city


def _embeddings(client: Any) -> list[float]:
    found = client.embeddings.create(model="emb-x", input=["How is the weather?"], encoding_format="float")
    return found.data[0].embedding


def _responses(client: Any) -> str:
    return client.responses.create(model="gpt-x", input="How is the weather?", max_output_tokens=20).output_text


def _responses_stream(client: Any) -> str:
    asked = {"model": "gpt-x", "input": "How is the weather?", "max_output_tokens": 20}
    with client.responses.stream(**asked) as stream:
        return stream.get_final_response().output_text


def _files(client: Any) -> str:
    return client.files.create(file=("a.jsonl", io.BytesIO(b"{}\n")), purpose="batch").id


def _batches(client: Any) -> str:
    endpoint = "/v1/chat/completions"
    return client.batches.create(input_file_id="file-1", endpoint=endpoint, completion_window="24h").id


def _models(client: Any) -> list[str]:
    return [model.id for model in client.models.list()]


def _messages(client: Any) -> str:
    return client.messages.create(model="claude-x", messages=ASKED, max_tokens=20).content[0].text


def _messages_stream(client: Any) -> list[Any]:
    with client.messages.stream(model="claude-x", messages=ASKED, max_tokens=20) as stream:
        said = "".join(stream.text_stream)
        return [said, stream.get_final_message().usage.output_tokens]


def _messages_tools(client: Any) -> list[Any]:
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    block = client.messages.create(model="claude-x", messages=ASKED, max_tokens=20, tools=tools).content[0]
    return [block.name, block.input]


def _count_tokens(client: Any) -> int:
    return client.messages.count_tokens(model="claude-x", messages=ASKED).input_tokens


def _content(client: Any) -> str:
    config = {"max_output_tokens": 20}
    return client.models.generate_content(model="gemini-x", contents="How is the weather?", config=config).text


def _content_stream(client: Any) -> list[Any]:
    config = {"max_output_tokens": 20}
    asked = {"model": "gemini-x", "contents": "How is the weather?", "config": config}
    chunks = list(client.models.generate_content_stream(**asked))
    return ["".join(chunk.text for chunk in chunks), chunks[-1].usage_metadata.candidates_token_count]


def _content_tools(client: Any) -> list[Any]:
    function = {"name": "weather", "parameters_json_schema": SCHEMA}
    config = {"max_output_tokens": 20, "tools": [{"function_declarations": [function]}]}
    answer = client.models.generate_content(model="gemini-x", contents="How is the weather?", config=config)
    return [answer.function_calls[0].name, answer.function_calls[0].args]


def _content_structured(client: Any) -> str:
    config = {"max_output_tokens": 20, "response_mime_type": "application/json", "response_json_schema": SCHEMA}
    return client.models.generate_content(model="gemini-x", contents="Where is it?", config=config).text


def _reported(answer: Any) -> list[Any]:
    from enforcement.metering.reported import read_report

    report = read_report(answer)
    return [report.model, sum(getattr(report.usage, name) for name in CLASSES)]


def _streamed(events: Any) -> list[Any]:
    from enforcement.metering.reported import StreamReport

    seen = StreamReport()
    for event in events:
        seen.add(event)
    seen.end()
    report = seen.report()
    return [report.model, sum(getattr(report.usage, name) for name in CLASSES)] if report else [None, 0]


def _openai_reports(client: Any) -> list[Any]:
    chat: dict[str, Any] = {"model": "gpt-x", "messages": ASKED}
    response: dict[str, Any] = {"model": "gpt-x", "input": "How is the weather?"}
    options = {"include_usage": True}
    with client.responses.stream(**response) as stream:
        events = _streamed(stream)
    return [
        _reported(client.chat.completions.create(**chat)),
        _streamed(client.chat.completions.create(**chat, stream=True, stream_options=options)),
        _reported(client.embeddings.create(model="gpt-x", input=["How is the weather?"])),
        _reported(client.responses.create(**response)),
        _streamed(client.responses.create(**response, stream=True)),
        events,
    ]


def _anthropic_reports(client: Any) -> list[Any]:
    asked: dict[str, Any] = {"model": "claude-x", "messages": ASKED, "max_tokens": 20}
    with client.messages.stream(**asked) as stream:
        events = _streamed(stream)
    return [
        _reported(client.messages.create(**asked)),
        _streamed(client.messages.create(**asked, stream=True)),
        events,
    ]


def _gemini_reports(client: Any) -> list[Any]:
    asked: dict[str, Any] = {"model": "gemini-x", "contents": "How is the weather?"}
    answer = client.models.generate_content(**asked)
    return [
        _reported(answer),
        _reported(answer.model_dump()),
        _streamed(client.models.generate_content_stream(**asked)),
    ]


CLIENTS: dict[str, Callable[[str, str, int], Any]] = {
    "openai": _openai,
    "azure": _azure,
    "anthropic": _anthropic,
    "gemini": _gemini,
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "openai-chat": _chat,
    "openai-chat-stream": _chat_stream,
    "openai-chat-tools": _chat_tools,
    "openai-chat-structured": _chat_structured,
    "openai-embeddings": _embeddings,
    "openai-responses": _responses,
    "openai-responses-stream": _responses_stream,
    "openai-files": _files,
    "openai-batches": _batches,
    "openai-models": _models,
    "azure-chat": _chat,
    "azure-chat-stream": _chat_stream,
    "anthropic-messages": _messages,
    "anthropic-messages-stream": _messages_stream,
    "anthropic-messages-tools": _messages_tools,
    "anthropic-count-tokens": _count_tokens,
    "gemini-content": _content,
    "gemini-content-stream": _content_stream,
    "gemini-content-tools": _content_tools,
    "gemini-content-structured": _content_structured,
    "openai-reports": _openai_reports,
    "anthropic-reports": _anthropic_reports,
    "gemini-reports": _gemini_reports,
}

if __name__ == "__main__":
    main()
