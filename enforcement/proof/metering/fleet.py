"""The processes of the proof: a store that keeps what it has written, a fake provider, and proxies that are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from enforcement.embedded import ValkeyServer, free_port
from enforcement.proof.metering import recorder

LIFE_SECONDS: Final = 3.0
"""How long the reservations of a killed proxy are open before they are lost."""
START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 60.0


class MeteringFleet:
    """
    A store, a provider and proxies.

    Args:
        folder: For all files.
        seed: That of the provider.
        proxies: How many there are.
    Attributes:
        store: The server of the store.
        invoice: The file of the provider.
        killed: When each instance was killed, by its name, in microseconds since the epoch.
        kills: How many processes were killed, by what they were.
        outages: When the store was killed, and when it ran again, in microseconds since the epoch.
    """

    def __init__(self, folder: Path, seed: str, proxies: int) -> None:
        # A write reaches the file before it is acknowledged, so a killed store has lost nothing.
        self.store = ValkeyServer(folder / "store", config={"appendfsync": "no"})
        self.invoice = folder / "invoice.jsonl"
        self.killed: dict[str, int] = {}
        self.kills = {"proxy": 0, "store": 0}
        self.outages: list[tuple[int, int]] = []
        self._folder, self._seed = folder, seed
        self._ports = [free_port() for _ in range(proxies)]
        self._proxies: list[subprocess.Popen[bytes] | None] = [None] * proxies
        self._names = [""] * proxies
        self._ready: set[int] = set()
        self._generation = 0
        self._provider: subprocess.Popen[str] | None = None
        self._reviving: set[asyncio.Task[None]] = set()

    def ports(self) -> Sequence[int]:
        """Return the ports of the proxies that are ready."""
        return [self._ports[at] for at in sorted(self._ready)] or self._ports

    def ledgers(self) -> list[Path]:
        """Return the ledgers of all proxies that ever ran."""
        return sorted(self._folder.glob("proxy-*.jsonl"))

    async def start(self) -> None:
        """Start the provider and all proxies. The store must run."""
        command = [sys.executable, "-m", "enforcement.proof.metering.provider", str(self.invoice), self._seed]
        self._provider = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._provider.stdout is not None
        self._upstream = f"http://127.0.0.1:{int(self._provider.stdout.readline())}"
        await asyncio.gather(*(self._run(at) for at in range(len(self._ports))))

    def kill_proxy(self, at: int, *, hard: bool = True) -> bool:
        """
        Kill a proxy and start it again in the background, and return whether it could be killed. *hard* False:
        terminate it, which lets it finish its requests.
        """
        process = self._proxies[at]
        if process is None or at not in self._ready or len(self._ready) == 1:
            return False
        self._ready.discard(at)
        if hard:
            self.killed[self._names[at]] = time.time_ns() // 1_000
        process.send_signal(signal.SIGKILL if hard else signal.SIGTERM)
        if hard:
            self.kills["proxy"] += 1
        self._later(self._revive(at, process))
        return True

    def kill_store(self) -> None:
        """Kill the store and start it again in the background."""
        self.kills["store"] += 1
        self._later(self._restart_store())

    async def settle_down(self) -> None:
        """Wait until all that was killed is running again."""
        while self._reviving:
            await asyncio.gather(*self._reviving)

    def stop_proxies(self) -> list[int]:
        """Terminate all proxies, and return their exit statuses."""
        running = [process for process in self._proxies if process is not None]
        for process in running:
            process.terminate()
        return [process.wait(_STOP_SECONDS) for process in running]

    def close(self) -> None:
        """Kill whatever is still running."""
        for process in (*self._proxies, self._provider):
            if process is not None:
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
        self.store.close()

    def _later(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._reviving.add(task)
        task.add_done_callback(self._reviving.discard)

    async def _restart_store(self) -> None:
        began_us = time.time_ns() // 1_000
        self.store.kill()
        await asyncio.to_thread(self.store.start)
        self.outages.append((began_us, time.time_ns() // 1_000))

    async def _revive(self, at: int, process: subprocess.Popen[bytes]) -> None:
        await asyncio.to_thread(process.wait, _STOP_SECONDS)
        await self._run(at)

    async def _run(self, at: int) -> None:
        """Start a proxy, and wait until it is ready."""
        self._generation += 1
        self._names[at] = name = f"proxy-{at}-{self._generation}"
        own = {
            "SLUICEGATE_REDIS_URL": self.store.url,
            "SLUICEGATE_UPSTREAM_URL": self._upstream,
            "SLUICEGATE_METER": "auto",
            "SLUICEGATE_INSTANCE": name,
            # A busy machine is not what is tested here.
            "SLUICEGATE_TIMEOUT_MS": "2000",
            "SLUICEGATE_LOOKUP_MS": "5000",
            recorder.LEDGER: str(self._folder / f"{name}.jsonl"),
            recorder.LIFE: str(LIFE_SECONDS),
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLUICEGATE_")}
        log = (self._folder / f"{name}.log").open("wb")
        with log:
            process = self._proxies[at] = subprocess.Popen(
                [sys.executable, "-m", "enforcement.proof.metering.recorder", "--port", str(self._ports[at])],
                env=inherited | own,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not await _is_ready(self._ports[at]):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"A proxy did not start: {(self._folder / f'{name}.log').read_text()[-500:]}")
            await asyncio.sleep(0.02)
        self._ready.add(at)


async def _is_ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
    finally:
        writer.close()
