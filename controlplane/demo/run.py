"""The whole demo, which starts the stack, runs eight steps, and then leaves the stack to the visitor."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from controlplane.demo.budget import check_budget
from controlplane.demo.environment import DemoEnvironment, set_up
from controlplane.demo.outage import restart_store, stop_store
from controlplane.demo.overhead import check_overhead
from controlplane.demo.reporter import Reporter
from controlplane.demo.steps import create, new_token, raise_quota, revoke, saturate


async def run_demo(reporter: Reporter, base: Path, directory: Path, environ: Mapping[str, str], *, stays: bool) -> bool:
    """
    Run the demo, and return whether all checks passed.

    Args:
        base: The directory of the code.
        directory: The directory for the data. The data of an earlier demo is deleted.
        stays: Whether to keep running after the last step, until the task is cancelled.
    Raises:
        StackError: The stack cannot start, or one of its parts refuses a call of the demo.
    """
    reporter.line("Sluicegate, one limit over three proxies.")
    reporter.line("Starting Valkey, web, Celery worker and beat, two upstreams and three proxies ...")
    started = time.monotonic()
    async with set_up(base, directory, environ) as demo:
        reporter.note(
            f"running after {time.monotonic() - started:.1f} s, with new data and logs in {_short(directory, base)}/"
        )
        await _prove(demo, reporter)
        held = reporter.summarize()
        await _hand_over(demo, reporter)
        if stays:
            reporter.line("Everything keeps running until Ctrl-C.")
            await asyncio.Event().wait()
    return held


async def _prove(demo: DemoEnvironment, reporter: Reporter) -> None:
    first = await create(demo, reporter)
    await saturate(demo, reporter, first)
    await raise_quota(demo, reporter, first)
    await revoke(demo, reporter, first)
    outage = await stop_store(demo, reporter)
    await restart_store(demo, reporter, first, outage)
    await check_overhead(demo, reporter)
    await check_budget(demo, reporter)


async def _hand_over(demo: DemoEnvironment, reporter: Reporter) -> None:
    token = await new_token(demo, "visitor")
    password = secrets.token_urlsafe(12)
    await demo.manage(
        *("createsuperuser", "--no-input", "--username", "admin", "--email", "admin@localhost"),
        DJANGO_SUPERUSER_PASSWORD=password,
    )
    reporter.line("")
    reporter.line(f"Admin     {demo.stack.web_url}/admin/   user admin, password {password} (of this run only)")
    reporter.line(f"REST      {demo.stack.web_url}/api/v1/")
    reporter.line(f"A proxy   curl -i -H 'X-API-Key: {token.secret}' {demo.stack.proxy_urls[0]}/hello")


def _short(path: Path, base: Path) -> Path:
    return path.relative_to(base) if path.is_relative_to(base) else path
