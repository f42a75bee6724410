"""
Read and write the messages of Envoy with the packages that are made from its own definitions.

It runs in an environment of its own (``docker/requirements/protobuf.txt``), as a program that answers each line of JSON
``[mode, type, value]`` by one. ``encode`` takes fields as protobuf's JSON has them and answers with hexadecimal;
``decode`` does the reverse. Types that end in ``+`` are those of ``envoy-data-plane``, which knows newer fields.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REQUEST, RESPONSE = "RateLimitRequest", "RateLimitResponse"
CHECK, CHECKED = "CheckRequest", "CheckResponse"


class Oracle:
    """The program, as its caller sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def encode(self, kind: str, fields: dict[str, Any]) -> bytes:
        return bytes.fromhex(self._ask("encode", kind, fields))

    def decode(self, kind: str, message: bytes) -> dict[str, Any]:
        found = self._ask("decode", kind, message.hex())
        assert isinstance(found, dict)
        return found

    def _ask(self, *words: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(words), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@contextmanager
def running() -> Iterator[Oracle]:
    """Run the program while the block runs."""
    from tests.apart import python_of

    command = [python_of("protobuf"), "-P", __file__]  # -P: modules beside this file are not its packages
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={}) as process:
        try:
            yield Oracle(process)
        finally:
            process.terminate()


def main() -> None:
    from envoy.service.auth.v3 import external_auth_pb2 as auth
    from envoy.service.ratelimit.v3 import rls_pb2 as rls
    from google.protobuf import json_format

    kinds = {REQUEST: rls.RateLimitRequest, RESPONSE: rls.RateLimitResponse}
    kinds |= {CHECK: auth.CheckRequest, CHECKED: auth.CheckResponse}
    for line in sys.stdin:
        mode, kind, value = json.loads(line)
        if kind.endswith("+"):
            answer = _newer(mode, kind[:-1], value)
        elif mode == "encode":
            answer = json_format.ParseDict(value, kinds[kind]()).SerializeToString().hex()
        else:
            message = kinds[kind].FromString(bytes.fromhex(value))
            answer = json_format.MessageToDict(message, preserving_proto_field_name=True)
        print(json.dumps(answer), flush=True)


def _newer(mode: str, kind: str, value: Any) -> Any:
    from envoy_data_plane.envoy.service.auth import v3 as auth
    from envoy_data_plane.envoy.service.ratelimit import v3 as rls

    made = getattr(rls, kind, None) or getattr(auth, kind)
    if mode == "encode":
        return bytes(made.from_dict(value)).hex()
    return made.parse(bytes.fromhex(value)).to_dict()


if __name__ == "__main__":
    main()
