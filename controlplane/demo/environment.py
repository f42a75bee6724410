"""The stack that the demo plays on: fresh data, logs in files, and hands to drive it with."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, Any

import httpx2

from controlplane.demo.load import ProxyClients
from controlplane.stack import embedded
from controlplane.stack.locks import StackError
from controlplane.stack.supervisor import Service, Supervisor

# A demo shows the same everywhere: what the environment says about another installation is not for it.
FOREIGN = ("SLUICEGATE_", "DATABASE_URL", "REDIS_URL", "SECRET_KEY", "DEBUG", "ALLOWED_HOSTS", "CSRF_TRUSTED_ORIGINS")
KEPT = ("SLUICEGATE_PORT", "SLUICEGATE_VALKEY_BINARY")
# In the directory of the data: what the supervisor finds a killed demo's processes by, and what says that it is ours.
LOCKS = "run"
MARK = "of-the-demo"


class DemoEnvironment:
    """
    The running stack.

    Attributes:
        stack: What runs, and where.
        rest: Client of the REST API, with a key that may do everything.
        clients: Clients of the proxies.
    """

    stack: embedded.Stack
    rest: httpx2.AsyncClient
    clients: ProxyClients

    def __init__(self, base: Path, directory: Path, environ: Mapping[str, str]) -> None:
        self._base = base
        self._directory = directory
        self._environ = environment(environ, directory)
        self.logs = Logs(directory / "log")
        self.supervisor = Supervisor(self._describe, directory / LOCKS, self.logs)

    def _describe(self) -> tuple[Service, ...]:
        clear(self._directory)
        self.stack = embedded.build(self._base, self._directory, self._environ)
        return self.stack.services

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        """Call the REST API. Raises StackError with the answer where it is no success."""
        try:
            answer = await self.rest.request(method, f"/api/v1/{path}", json=body)
        except httpx2.TransportError as exc:
            raise StackError(f"{method} /api/v1/{path} was not answered: {exc!r}") from exc
        if not answer.is_success:
            raise StackError(f"{method} /api/v1/{path} was answered with {answer.status_code}: {answer.text[:500]}")
        return answer

    async def manage(self, *arguments: str, **environment: str) -> str:
        """Run a management command on the stack's data and return what it prints. Raises StackError if it fails."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "manage.py", *arguments),
            cwd=self._base,
            env={**self.stack.environment, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends this
        )
        try:
            printed, complaint = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise StackError(f"manage.py {arguments[0]} failed:\n{complaint.decode()[-1000:]}")
        return printed.decode().strip()


class Logs:
    """Writes what each service prints to a file of its own in *directory*."""

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
    Remove what an earlier demo left in *directory*, but for the mark and the locks.

    By the locks the supervisor has made sure that nothing of it runs any more.
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
    Make *directory* the demo's, which may then be cleared.

    Raises:
        StackError: It holds something that no demo made.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / MARK).exists():
        raise StackError(f"{directory} holds something that no demo made; it would be removed. Name another directory.")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARK).touch()


def environment(environ: Mapping[str, str], directory: Path) -> dict[str, str]:
    """Return the environment of the demo's processes."""
    own = {name: value for name, value in environ.items() if name in KEPT or not name.startswith(FOREIGN)}
    return {**own, "DATABASE_URL": f"sqlite:///{directory.resolve() / 'controlplane.sqlite3'}"}


@asynccontextmanager
async def set_up(base: Path, directory: Path, environ: Mapping[str, str]) -> AsyncIterator[DemoEnvironment]:
    """
    Start the stack with fresh data in *directory*; stop it at the end, whatever happened.

    Raises:
        StackError: It does not start, or an earlier one still runs here.
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
            await _to_its_end(demo.supervisor.stop())
    finally:
        demo.logs.close()


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await *work* to its end, whoever cancels the wait meanwhile: a process left behind is worse than a late one."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()


async def _rest(demo: DemoEnvironment) -> httpx2.AsyncClient:
    key = await demo.manage("create_management_key", "--name", "demo", "--scopes", "*")
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(base_url=demo.stack.web_url, headers=headers, timeout=30.0, trust_env=False)
