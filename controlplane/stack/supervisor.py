"""
A supervisor that starts processes in the order of their dependencies, restarts them, and stops them in reverse order.

Existing supervisors either stop every process when one exits, or do not wait until a process is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.stack.locks import StackError, end_leftovers, free_lock, own_lock, signal_group

POLL_SECONDS = 0.05
FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 5.0
# A process that ran for this time is restarted with the first delay, and not with a longer one.
STEADY_SECONDS = 10.0

Output = Callable[[str, str], None]


@dataclass(frozen=True)
class Service:
    """
    A process and its dependencies.

    Attributes:
        ready: A function that returns whether the service is ready, called in a thread. With None, a started process is
            ready.
        after: Names of the services that must be ready before this one starts. They are stopped after it.
        once: Whether the process does its work once and exits with 0. It is ready when it has exited.
        grace_seconds: The time that the process has to end before it is killed.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    ready: Callable[[], bool] | None = None
    after: tuple[str, ...] = ()
    once: bool = False
    ready_seconds: float = 60.0
    grace_seconds: float = 10.0


class _Member:
    """A service and its present state."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.ready = asyncio.Event()
        self.wanted = asyncio.Event()
        self.wanted.set()
        self.process: asyncio.subprocess.Process | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.pump: asyncio.Task[None] | None = None
        self.was_ready = False


class Supervisor:
    """
    A supervisor of the services that *describe* returns.

    *describe* is called after all processes of an earlier run have ended, when their ports and files are free.
    *directory* has a lock for each process, by which the next supervisor finds the processes of a killed one.

    All methods but ``pid`` belong to one event loop. ``supervised()`` runs a supervisor with a loop in a thread.
    """

    def __init__(self, describe: Callable[[], Iterable[Service]], directory: Path, output: Output) -> None:
        self._describe = describe
        self._members: dict[str, _Member] = {}
        self._directory = directory
        self._output = output
        self._lock: int | None = None

    def pid(self, name: str) -> int:
        """Return the process id of a running service, which is also the id of its process group."""
        process = self._members[name].process
        if process is None or process.returncode is not None:
            raise StackError(f"{name} is not running.")
        return process.pid

    async def start(self) -> None:
        """
        Start every service, and wait until all of them are ready.

        Raises:
            StackError: Another supervisor uses the directory, or a service did not become ready. Nothing runs then.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = own_lock(self._directory)
        try:
            await end_leftovers(self._directory)
            self._members = {service.name: _Member(service) for service in self._describe()}
            for member in self._members.values():
                member.keeper = asyncio.create_task(self._keep(member), name=member.service.name)
            await self._until_all_ready()
        except BaseException:  # also if Ctrl-C cancels the start, which may have started some services
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop every service after those that depend on it."""
        stopping: dict[str, asyncio.Task[None]] = {}
        for name in self._members:
            self._stop_after_dependants(name, stopping)
        await asyncio.gather(*stopping.values())
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def take_down(self, name: str) -> None:
        """Kill a service, and do not restart it until ``bring_back`` is called."""
        member = self._members[name]
        member.wanted.clear()
        await _end(member, grace_seconds=0)

    async def bring_back(self, name: str) -> None:
        """Start a service that was taken down, and wait until it is ready."""
        self._members[name].wanted.set()
        await self._members[name].ready.wait()

    async def _until_all_ready(self) -> None:
        keepers = [member.keeper for member in self._members.values() if member.keeper]
        waiting = {asyncio.create_task(member.ready.wait()) for member in self._members.values()}
        try:
            while waiting:
                done, _ = await asyncio.wait([*waiting, *keepers], return_when=asyncio.FIRST_COMPLETED)
                waiting -= done
                for failed in done.intersection(keepers):  # the task of a service ends only with an exception
                    await failed
        finally:
            for task in waiting:
                task.cancel()

    def _stop_after_dependants(self, name: str, stopping: dict[str, asyncio.Task[None]]) -> asyncio.Task[None]:
        if name not in stopping:
            dependants = [other for other, member in self._members.items() if name in member.service.after]
            first = [self._stop_after_dependants(other, stopping) for other in dependants]
            stopping[name] = asyncio.create_task(self._stop_one(self._members[name], first))
        return stopping[name]

    async def _stop_one(self, member: _Member, first: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*first)
        member.wanted.clear()
        if member.keeper is not None:
            member.keeper.cancel()
            await asyncio.wait([member.keeper])
        await _end(member, grace_seconds=member.service.grace_seconds)

    async def _keep(self, member: _Member) -> None:
        """
        Run a service whenever it is wanted, and restart it when it ends, until this task is cancelled. Raises
        StackError if the service ends before it was ready.
        """
        for name in member.service.after:
            await self._members[name].ready.wait()
        delay = FIRST_DELAY_SECONDS
        while True:
            await member.wanted.wait()
            started = time.monotonic()
            code = await self._run(member)
            if not member.was_ready:
                raise StackError(f"{member.service.name} ended with exit code {code} before it was ready.")
            if member.service.once:
                await asyncio.Event().wait()  # its work is done, and this task waits until it is cancelled
            if member.wanted.is_set():
                delay = FIRST_DELAY_SECONDS if time.monotonic() - started > STEADY_SECONDS else delay
                self._output(member.service.name, f"ended with exit code {code}, restarting in {delay:.1f} s")
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)

    async def _run(self, member: _Member) -> int:
        member.process = process = await self._launch(member)
        readiness = asyncio.create_task(self._watch_readiness(member))
        try:
            code = await process.wait()
        finally:
            readiness.cancel()
        if member.service.once and code == 0:
            member.was_ready = True
            member.ready.set()
        else:
            member.ready.clear()
        signal_group(process.pid, signal.SIGKILL)  # children of a crashed process may still run
        if member.pump is not None:
            await member.pump
        return code

    async def _launch(self, member: _Member) -> asyncio.subprocess.Process:
        service = member.service
        lock = await free_lock(self._directory / f"{service.name}.lock", service.grace_seconds)
        # With a pipe of asyncio, wait() would return only when the last child of a dead process closes the pipe.
        reading, writing = os.pipe()
        try:
            # In a new session, Ctrl-C reaches only the supervisor, which then stops the processes in order.
            process = await asyncio.create_subprocess_exec(
                *service.command,
                env=dict(service.environment),
                cwd=service.directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock],
            )
            os.pwrite(lock, f"{process.pid:<20}\n".encode(), 0)
        finally:
            os.close(lock)  # the child process still holds the lock
            os.close(writing)
            member.pump = asyncio.create_task(self._pump(service.name, reading))
        return process

    async def _pump(self, name: str, descriptor: int) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(descriptor, "rb"))
        rest = b""
        while chunk := await reader.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._output(name, line.decode(errors="replace"))
        if rest:
            self._output(name, rest.decode(errors="replace"))

    async def _watch_readiness(self, member: _Member) -> None:
        service = member.service
        if service.once:
            return
        deadline = time.monotonic() + service.ready_seconds
        while service.ready is not None and not await asyncio.to_thread(service.ready):
            if time.monotonic() > deadline and not member.was_ready:
                self._output(service.name, f"was not ready within {service.ready_seconds:.0f} s")
                signal_group(self.pid(service.name), signal.SIGKILL)
                return
            await asyncio.sleep(POLL_SECONDS)
        member.was_ready = True
        member.ready.set()


async def serve(supervisor: Supervisor, announce: Callable[[], None]) -> None:
    """
    Run the supervisor until SIGINT, SIGTERM or SIGHUP, and call *announce* when every service is ready.

    Raises:
        StackError: The stack cannot start.
    """
    asked_to_stop = asyncio.Event()
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(sent, asked_to_stop.set)
    stopping = asyncio.create_task(asked_to_stop.wait())
    starting = asyncio.create_task(supervisor.start())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting])
        return
    await starting
    try:
        announce()
        await stopping
    finally:
        await supervisor.stop()


@contextlib.contextmanager
def supervised(supervisor: Supervisor) -> Iterator[Callable[[Coroutine[object, object, None]], None]]:
    """
    Run a supervisor in a thread during the block, and yield a function that waits for one of its coroutines.

    >>> with supervised(supervisor) as run:
    ...     run(supervisor.take_down("valkey"))
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="supervisor", daemon=True)
    thread.start()

    def run(call: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(call, loop).result()

    try:
        run(supervisor.start())
        try:
            yield run
        finally:
            run(supervisor.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(member: _Member, *, grace_seconds: float) -> None:
    """
    Send a process the signal to end, and kill its group after the grace.

    It is asked first so that it can end its own children.
    """
    process = member.process
    member.ready.clear()
    if process is None:
        return
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            if grace_seconds:
                process.terminate()
                process.send_signal(signal.SIGCONT)  # a stopped process does not receive SIGTERM
            await asyncio.wait_for(process.wait(), grace_seconds)
    signal_group(process.pid, signal.SIGKILL)
    await process.wait()
    if member.pump is not None:
        await member.pump
