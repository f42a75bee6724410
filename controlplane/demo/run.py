"""The whole play: the stage is set, seven proofs are given, and the stage is left to the visitor."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from controlplane.demo.environment import Stage, set_up
from controlplane.demo.outage import pull_store, put_back
from controlplane.demo.overhead import weigh
from controlplane.demo.reporter import Teller
from controlplane.demo.steps import create, new_token, raise_quota, revoke, saturate


async def perform(teller: Teller, base: Path, directory: Path, environ: Mapping[str, str], *, stays: bool) -> bool:
    """
    Play, and return whether all checks held; where it *stays*, only by being cancelled does it end.

    Args:
        base: Where the code is.
        directory: Where the demo's data goes; what an earlier demo left there is removed.
    Raises:
        StackError: The stack cannot start, or one of its parts refuses what every installation must be able to do.
    """
    teller.line("Sluicegate: one limit over three proxies.")
    teller.line("Starting Valkey, web, Celery worker and beat, an upstream and three proxies ...")
    started = time.monotonic()
    async with set_up(base, directory, environ) as stage:
        teller.say(
            f"up after {time.monotonic() - started:.1f} s, with fresh data and logs in {_short(directory, base)}/"
        )
        await _prove(stage, teller)
        held = teller.sum_up()
        await _hand_over(stage, teller)
        if stays:
            teller.line("Everything stays up until Ctrl-C.")
            await asyncio.Event().wait()
    return held


async def _prove(stage: Stage, teller: Teller) -> None:
    first = await create(stage, teller)
    await saturate(stage, teller, first)
    await raise_quota(stage, teller, first)
    await revoke(stage, teller, first)
    outage = await pull_store(stage, teller)
    await put_back(stage, teller, first, outage)
    await weigh(stage, teller)


async def _hand_over(stage: Stage, teller: Teller) -> None:
    token = await new_token(stage, "visitor")
    password = secrets.token_urlsafe(12)
    await stage.manage(
        *("createsuperuser", "--no-input", "--username", "admin", "--email", "admin@localhost"),
        DJANGO_SUPERUSER_PASSWORD=password,
    )
    teller.line("")
    teller.line(f"Admin     {stage.stack.web_url}/admin/   user admin, password {password} (of this run only)")
    teller.line(f"REST      {stage.stack.web_url}/api/v1/")
    teller.line(f"A proxy   curl -i -H 'X-API-Key: {token.secret}' {stage.stack.proxy_urls[0]}/hello")


def _short(path: Path, base: Path) -> Path:
    return path.relative_to(base) if path.is_relative_to(base) else path
