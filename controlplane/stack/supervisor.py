"""
Starts processes in the order in which they need each other, keeps them running, and stops them in reverse.

Ready-made supervisors stop everything when one process exits, or do not wait until a process is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.stack.locks import StackError, end_leftovers, free_lock, own_lock, signal_group

POLL_SECONDS = 0.05
FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 5.0
# A process that ran this long before it ended is started again at once, not with the last delay.
STEADY_SECONDS = 10.0

Output = Callable[[str, str], None]


@dataclass(frozen=True)
class Service:
    """
    One process and what it needs.

    Attributes:
        ready: Asked from a thread until it says True; None: ready once it has been started.
        after: Names of the services that must be ready before this one starts, and outlive it.
        once: It does its work and exits with 0; ready then means that it has.
        grace_seconds: From the request to end until it is forced.
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
    """A service, and what is true of it now."""

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
    Runs what *describe* names; *directory* holds a lock a process, by which the next supervisor finds what a killed one
    left. The description is made when nothing of an earlier run is left: its ports are free, its files not in use.

    Every method but ``pid`` belongs to one event loop; ``supervised()`` gives a supervisor a loop in a thread.
    """

    def __init__(self, describe: Callable[[], Iterable[Service]], directory: Path, output: Output) -> None:
        self._describe = describe
        self._members: dict[str, _Member] = {}
        self._directory = directory
        self._output = output
        self._lock: int | None = None

    def pid(self, name: str) -> int:
        """Return the process id, which is the process group's too, of a running service."""
        process = self._members[name].process
        if process is None or process.returncode is not None:
            raise StackError(f"{name} does not run.")
        return process.pid

    async def start(self) -> None:
        """
        Start everything and return once all of it is ready.

        Raises:
            StackError: Another supervisor is at work here, or a service did not become ready. Nothing runs then.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = own_lock(self._directory)
        try:
            await end_leftovers(self._directory)
            self._members = {service.name: _Member(service) for service in self._describe()}
            for member in self._members.values():
                member.keeper = asyncio.create_task(self._keep(member), name=member.service.name)
            await self._until_all_ready()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop everything, dependants first."""
        stopping: dict[str, asyncio.Task[None]] = {}
        for name in self._members:
            self._stop_after_dependants(name, stopping)
        await asyncio.gather(*stopping.values())
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def take_down(self, name: str) -> None:
        """Kill a service as a crash would, and leave it down until ``bring_back``."""
        member = self._members[name]
        member.wanted.clear()
        await _end(member, grace_seconds=0)

    async def bring_back(self, name: str) -> None:
        """Start a service that was taken down, and return once it is ready."""
        self._members[name].wanted.set()
        await self._members[name].ready.wait()

    async def _until_all_ready(self) -> None:
        keepers = [member.keeper for member in self._members.values() if member.keeper]
        waiting = {asyncio.create_task(member.ready.wait()) for member in self._members.values()}
        try:
            while waiting:
                done, _ = await asyncio.wait([*waiting, *keepers], return_when=asyncio.FIRST_COMPLETED)
                waiting -= done
                for failed in done.intersection(keepers):  # a keeper ends only by failing
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
        """Run one service for as long as it is wanted; start it again whenever it ends by itself."""
        for name in member.service.after:
            await self._members[name].ready.wait()
        delay = FIRST_DELAY_SECONDS
        while True:
            await member.wanted.wait()
            started = time.monotonic()
            code = await self._run(member)
            if not member.was_ready:
                raise StackError(f"{member.service.name} ended with {code} before it was ready.")
            if member.service.once:
                await asyncio.Event().wait()  # done, and true until the end
            if member.wanted.is_set():
                delay = FIRST_DELAY_SECONDS if time.monotonic() - started > STEADY_SECONDS else delay
                self._output(member.service.name, f"ended with {code}; starting again in {delay:.1f} s")
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
        signal_group(process.pid, signal.SIGKILL)  # what a crashed leader left of its group
        if member.pump is not None:
            await member.pump
        return code

    async def _launch(self, member: _Member) -> asyncio.subprocess.Process:
        service = member.service
        lock = await free_lock(self._directory / f"{service.name}.lock", service.grace_seconds)
        # A pipe of our own: with asyncio's, wait() returns only when the last child of a dead process lets go of it.
        reading, writing = os.pipe()
        try:
            # A session of its own: Ctrl-C reaches the supervisor only, which then keeps the order.
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
            os.close(lock)  # the child holds it on
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
    Run until SIGINT, SIGTERM or SIGHUP; call *announce* when everything is ready.

    Raises:
        StackError: It could not start.
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
    announce()
    await stopping
    await supervisor.stop()


@contextlib.contextmanager
def supervised(supervisor: Supervisor) -> Iterator[Callable[[Awaitable[None]], None]]:
    """
    Run a supervisor beside the caller's own code; yield a function that awaits one of its methods.

    >>> with supervised(supervisor) as run:
    ...     run(supervisor.take_down("valkey"))
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="supervisor", daemon=True)
    thread.start()

    def run(call: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(call, loop).result()  # type: ignore[arg-type]

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
    """End a process: by request to its leader, who ends its own children in order; then by force to the whole group."""
    process = member.process
    member.ready.clear()
    if process is None:
        return
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            if grace_seconds:
                process.terminate()
                process.send_signal(signal.SIGCONT)  # a frozen process sees no SIGTERM
            await asyncio.wait_for(process.wait(), grace_seconds)
    signal_group(process.pid, signal.SIGKILL)
    await process.wait()
    if member.pump is not None:
        await member.pump
