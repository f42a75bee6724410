"""The stack of the demo, with new data, log files, and clients."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO

from enforcement.extras import Requirement

with Requirement("The demo", "sluicegate[cli]"):
    import httpx2

from controlplane.demo.load import ProxyClients
from controlplane.demo.provider import Invoice, read_invoice, with_provider
from controlplane.stack import embedded
from controlplane.stack.locks import StackError
from controlplane.stack.supervisor import Service, Supervisor

# Variables of another installation that the demo ignores, so that it shows the same on every machine.
FOREIGN = ("SLUICEGATE_", "DATABASE_URL", "REDIS_URL", "SECRET_KEY", "DEBUG", "ALLOWED_HOSTS", "CSRF_TRUSTED_ORIGINS")
KEPT = ("SLUICEGATE_PORT", "SLUICEGATE_VALKEY_BINARY")
# In the data directory: the locks of the supervisor, and the file that marks the directory as the demo's.
LOCKS = "run"
MARK = "of-the-demo"


class DemoEnvironment:
    """
    The running stack of the demo.

    Attributes:
        stack: The services and their addresses.
        rest: The client of the REST API, with a key that has every scope.
        clients: The clients of the proxies.
    """

    stack: embedded.Stack
    rest: httpx2.AsyncClient
    clients: ProxyClients

    def __init__(self, base: Path, directory: Path, environ: Mapping[str, str]) -> None:
        self._base = base
        self._directory = directory
        self._environ = process_environment(environ, directory)
        self.logs = Logs(directory / "log")
        self.supervisor = Supervisor(self._describe, directory / LOCKS, self.logs)

    def _describe(self) -> tuple[Service, ...]:
        clear(self._directory)
        stack = embedded.build(self._base, self._directory, self._environ)
        self.stack = with_provider(stack, self._base, self._directory)
        return self.stack.services

    async def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> httpx2.Response:
        """Call the REST API, and return the response, or raise StackError if it is not a success."""
        try:
            answer = await self.rest.request(method, f"/api/v1/{path}", json=body)
        except httpx2.TransportError as exc:
            raise StackError(f"{method} /api/v1/{path} got no response: {exc!r}") from exc
        if not answer.is_success:
            raise StackError(f"{method} /api/v1/{path} got status {answer.status_code}: {answer.text[:500]}")
        return answer

    def invoice(self, prices: Mapping[str, int]) -> Invoice:
        """Return what the fake provider charges at *prices*, micros for a million tokens of each class."""
        return read_invoice(self._directory, prices)

    async def manage(self, *arguments: str, **environment: str) -> str:
        """Run a management command with the data of the demo, and return its output. Raises StackError if it fails."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "controlplane", *arguments),
            cwd=self._base,
            env={**self.stack.environment, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C reaches only the demo, which then ends this process
        )
        try:
            printed, complaint = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise StackError(f"The command {arguments[0]} failed:\n{complaint.decode()[-1000:]}")
        return printed.decode().strip()


class Logs:
    """The log files in *directory*, one for each service."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, IO[str]] = {}

    def __call__(self, name: str, line: str) -> None:
        if name not in self._files:
            self._directory.mkdir(exist_ok=True)
            self._files[name] = (self._directory / f"{name}.log").open("a", encoding="utf-8", buffering=1)
        self._files[name].write(line + "\n")

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def clear(directory: Path) -> None:
    """
    Delete the data of an earlier demo in *directory*, without the mark and the locks.

    The supervisor has already ended all processes of the earlier demo.
    """
    for entry in directory.iterdir():
        if entry.name in (LOCKS, MARK):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def claim(directory: Path) -> None:
    """
    Create *directory* with the demo's mark, which allows the demo to delete its content later.

    Raises:
        StackError: The directory has content that no demo made.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / MARK).exists():
        message = f"--directory: must be empty or of an earlier demo, got {directory}, with files that no demo made."
        raise StackError(message)
    embedded.keep_private(directory)
    (directory / MARK).touch()


def process_environment(environ: Mapping[str, str], directory: Path) -> dict[str, str]:
    """Return the environment variables of the demo's processes."""
    own = {name: value for name, value in environ.items() if name in KEPT or not name.startswith(FOREIGN)}
    return {**own, "DATABASE_URL": f"sqlite:///{directory.resolve() / 'controlplane.sqlite3'}"}


@asynccontextmanager
async def set_up(base: Path, directory: Path, environ: Mapping[str, str]) -> AsyncIterator[DemoEnvironment]:
    """
    Start the stack with new data in *directory*, yield it, and stop it at the end.

    Raises:
        StackError: The stack cannot start, or an earlier demo still runs in this directory.
    """
    claim(directory)
    demo = DemoEnvironment(base, directory, environ)
    try:
        await demo.supervisor.start()
        try:
            async with AsyncExitStack() as opened:
                demo.clients = await opened.enter_async_context(ProxyClients(demo.stack.proxy_urls))
                demo.rest = await opened.enter_async_context(await _rest(demo))
                yield demo
        finally:
            await _uncancelled(demo.supervisor.stop())
    finally:
        demo.logs.close()


async def _uncancelled(work: Coroutine[object, object, None]) -> None:
    """Run *work* to completion even if this task is cancelled, so that no process keeps running."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()


async def _rest(demo: DemoEnvironment) -> httpx2.AsyncClient:
    key = await demo.manage("create_management_key", "--name", "demo", "--scopes", "*", "--all-projects")
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(base_url=demo.stack.web_url, headers=headers, timeout=30.0, trust_env=False)
