"""Plays scripts against proxies, over plain connections. It imports nothing of the product."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from tests.adversary.scripts import Call, Script
from tests.adversary.wire import VISIBLE

ENOUGH = 4
"""A script that was denied or refused so often in a row is over."""


@dataclass
class Outcome:
    """How often a script was tried, and what became of it."""

    admitted: int = 0
    denied: int = 0
    refused: int = 0
    lost: int = 0
    in_a_row: int = 0

    def note(self, status: int) -> None:
        """Note a status of the proxy. 0: the consumer left before there was one, or the proxy was killed."""
        if status in (429, 403):
            self.in_a_row += 1
        elif status:
            self.in_a_row = 0
        if status == 429:
            self.denied += 1
        elif status == 403:
            self.refused += 1
        elif status:
            self.admitted += 1
        else:
            self.lost += 1


async def play(
    script: Script,
    secret: str,
    ports: Callable[[], Sequence[int]],
    dice: Random,
    slots: asyncio.Semaphore,
    most: int,
    untold: float = 0.3,
) -> Outcome:
    """
    Try a script with a token until it is denied, and return what became of it.

    Args:
        ports: Returns those of the proxies that run.
        slots: One for each consumer that may be under way.
        most: How often it is tried at most.
        untold: How often the provider does not say what an answer has used, so that only what was reserved counts.
    """
    outcome, tries = Outcome(), iter(range(most))

    async def consume() -> None:
        for _ in tries:
            call = script.make(dice)
            if "end" not in call.play and dice.random() < untold:
                call.play["end"] = "untold"
            async with slots:
                status = await send(dice.choice(ports()), secret, script.name, call)
            outcome.note(status)
            if outcome.in_a_row >= ENOUGH:
                return
            if status == 429:
                await asyncio.sleep(0.05)  # something may be given back

    await asyncio.gather(*(consume() for _ in range(script.crowd)))
    return outcome


async def send(port: int, secret: str, account: str, call: Call) -> int:
    """Send a request, do with its answer what the call says, and return the status, or 0 if none came."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        await asyncio.sleep(0.05)
        return 0
    got = b""
    try:
        body = call.data
        fields = {
            "host": "x", "authorization": f"Bearer {secret}", "content-type": "application/json",
            "content-length": str(len(body)), "x-account": account, "x-play": json.dumps(call.play),
            "connection": "close", **call.fields,
        }  # fmt: skip
        lines = [f"POST {call.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        writer.write("\r\n".join(lines).encode() + (body[: len(body) // 2] if call.leaves == "half" else body))
        await writer.drain()
        if call.leaves in ("half", "sent"):
            return 0
        got = await asyncio.wait_for(_listen(reader, call.leaves), 20)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return int(got[9:12]) if len(got) > 12 else 0


async def _listen(reader: asyncio.StreamReader, leaves: str) -> bytes:
    """Read until the consumer leaves, and return what has come."""
    ends = {"text": VISIBLE.encode(), "head": b"\r\n\r\n"}.get(leaves)
    got = b""
    if leaves == "soon":
        with suppress(TimeoutError):
            got = await asyncio.wait_for(reader.read(100), 0.05)
        return got
    with suppress(ConnectionError):
        while part := await reader.read(64 if leaves == "slow" else 65_536):
            got += part
            if ends is not None and ends in got:
                break
            if leaves == "slow":
                await asyncio.sleep(0.01)
    return got
