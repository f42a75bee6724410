"""Runs the scenarios of tests/vectors/ through a limiter; every door that decides runs the same ones."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import http_sf

from enforcement import Denied, InvalidLimit, Limit, Limiter, aio
from tests.forks import Forked

FOLDER = Path(__file__).parent.parent / "vectors"
TIMES = ("retry_after_ms", "reset_ms")


def load_vectors() -> list[dict[str, Any]]:
    """Return all scenarios."""
    return [vector for path in sorted(FOLDER.glob("*.json")) for vector in json.loads(path.read_text())["vectors"]]


class Processes:
    """Four processes with a limiter each, on one store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.running: list[Forked] = []

    def start(self) -> Forked:
        return Forked(["-m", "tests.enforcement.vector_worker", self.url])

    def several(self, count: int) -> list[Forked]:
        while len(self.running) < count:
            self.running.append(self.start())
        return self.running[:count]

    def close(self) -> None:
        for process in self.running:
            process.stdin.close()
            process.wait(10)
            process.stdout.close()


def send(process: Forked, **line: Any) -> None:
    process.stdin.write(json.dumps(line) + "\n")
    process.stdin.flush()


def receive(process: Forked) -> dict[str, Any]:
    return json.loads(process.stdout.readline())


class SyncDoor:
    """The sync limiter."""

    PREFIX = ""  # what a door itself puts before a key

    def __init__(self, url: str, clock: Callable[[], int]) -> None:
        self.url, self.clock = url, clock
        self.limiters: dict[str, Limiter] = {}

    def limiter(self, name: str) -> Limiter:
        if name not in self.limiters:
            self.limiters[name] = Limiter(self.url, clock=self.clock, timeout=2.0)
        return self.limiters[name]

    def hit(self, name, limits, key, costs):
        return self.limiter(name).hit(limits, key, costs)

    def peek(self, name, limits, key):
        return self.limiter(name).peek(limits, key)

    def reset(self, name, limits, key):
        self.limiter(name).reset(limits, key)

    def reserve(self, name, limits, key, costs):
        stack = ExitStack()
        return stack, stack.enter_context(self.limiter(name).admit(limits, key, costs))

    def settle(self, admission, costs):
        admission.settle(costs)

    def leave(self, stack):
        stack.close()

    def cancel(self, stack, admission):
        stack.__exit__(RuntimeError, RuntimeError(), None)
        admission.cancel()

    def close(self):
        for limiter in self.limiters.values():
            limiter.close()


class AsyncDoor:
    """The asyncio limiter, on a loop of its own."""

    PREFIX = ""

    def __init__(self, url: str, clock: Callable[[], int]) -> None:
        self.url, self.clock = url, clock
        self.runner = asyncio.Runner()
        self.limiters: dict[str, aio.Limiter] = {}

    def limiter(self, name: str) -> aio.Limiter:
        if name not in self.limiters:
            self.limiters[name] = aio.Limiter(self.url, clock=self.clock, timeout=2.0)
        return self.limiters[name]

    def hit(self, name, limits, key, costs):
        return self.runner.run(self.limiter(name).hit(limits, key, costs))

    def peek(self, name, limits, key):
        return self.runner.run(self.limiter(name).peek(limits, key))

    def reset(self, name, limits, key):
        self.runner.run(self.limiter(name).reset(limits, key))

    def reserve(self, name, limits, key, costs):
        stack = AsyncExitStack()
        return stack, self.runner.run(stack.enter_async_context(self.limiter(name).admit(limits, key, costs)))

    def settle(self, admission, costs):
        self.runner.run(admission.settle(costs))

    def leave(self, stack):
        self.runner.run(stack.aclose())

    def cancel(self, stack, admission):
        self.runner.run(stack.__aexit__(RuntimeError, RuntimeError(), None))
        self.runner.run(admission.cancel())

    def close(self):
        for limiter in self.limiters.values():
            self.runner.run(limiter.close())
        self.runner.close()


class Scenario:
    """One vector on its way through a door."""

    def __init__(self, vector: dict[str, Any], door_class: type, url: str, processes: Processes) -> None:
        self.vector = vector
        self.start_us = _instant(vector["start_at"])
        self.now = self.start_us
        self.door = door_class(url, lambda: self.now)
        self.processes = processes
        self.limits = {spec["name"]: Limit(**spec) for spec in vector["limits"]}
        self.specs = {spec["name"]: spec for spec in vector["limits"]}
        self.open: dict[str, Any] = {}

    def run(self) -> None:
        try:
            for number, step in enumerate(self.vector["steps"]):
                self.now = self.start_us + step.get("at_ms", 0) * 1_000
                try:
                    self.step(step)
                except AssertionError as exc:
                    raise AssertionError(f"{self.vector['id']}, step {number} {step}: {exc}") from exc
        finally:
            for kept in list(self.open.values()):
                self._leave(kept)
            self.door.close()

    def step(self, step: dict[str, Any]) -> None:
        getattr(self, "do_" + step.get("op", "hit"))(step, step.get("expect", {}))

    def _call(self, step):
        names = step.get("only", list(self.limits))
        key = f"{self.door.PREFIX}{self.vector['id']}:{step.get('key', 'k')}"
        return step.get("limiter", "a"), [self.limits[name] for name in names], key

    def do_hit(self, step, expect):
        try:
            decision = self.door.hit(*self._call(step), step.get("costs", 1))
        except ValueError:
            assert expect.get("error"), "an error that was not expected"
            return
        check(decision, expect)

    def do_peek(self, step, expect):
        check(self.door.peek(*self._call(step)), expect)

    def do_reset(self, step, expect):
        self.door.reset(*self._call(step))

    def do_reserve(self, step, expect):
        name, limits, key = self._call(step)
        if step.get("own_process"):
            self._reserve_elsewhere(step, key, expect)
            return
        try:
            stack, admission = self.door.reserve(name, limits, key, step.get("costs", 1))
        except Denied as denied:
            check(denied.decision, expect)
        except ValueError:
            assert expect.get("error"), "an error that was not expected"
        else:
            self.open[step["ref"]] = stack, admission
            check(admission.decision, expect)

    def _reserve_elsewhere(self, step, key, expect):
        process = self.processes.start()
        specs = [self.specs[name] for name in step.get("only", list(self.limits))]
        send(process, op="reserve", limits=specs, key=key, costs=step.get("costs", 1), now=self.now)
        assert receive(process)["allowed"] == expect["allowed"]
        self.open[step["ref"]] = process

    def do_settle(self, step, expect):
        kept = self.open.get(step["ref"])
        if kept is None:
            assert step.get("may_raise"), "nothing is open under this name"
            return
        try:
            self.door.settle(kept[1], step["costs"])
        except ValueError:
            assert expect.get("error") or step.get("may_raise"), "an error that was not expected"

    def do_leave(self, step, expect):
        if step["ref"] in self.open:
            self._leave(self.open.pop(step["ref"]))

    def _leave(self, kept):
        if isinstance(kept, Forked):
            kept.stdin.close()
            kept.wait(10)
            kept.stdout.close()
        else:
            self.door.leave(kept[0])

    def do_cancel(self, step, expect):
        if step["ref"] in self.open:
            self.door.cancel(*self.open.pop(step["ref"]))

    def do_crash(self, step, expect):
        process = self.open.pop(step["ref"])
        process.kill()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()

    def do_change(self, step, expect):
        self.limits = {spec["name"]: Limit(**spec) for spec in step["limits"]}
        self.specs = {spec["name"]: spec for spec in step["limits"]}

    def do_define(self, step, expect):
        try:
            Limit(**step["limit"])
        except InvalidLimit:
            assert expect.get("error"), "an error that was not expected"
        else:
            assert not expect.get("error"), "an error was expected"

    def do_load(self, step, expect):
        allowed = 0
        for _ in range(step["count"]):
            allowed += self.door.hit(*self._call(step), step.get("costs", 1)).allowed
            self.now += step.get("every_ms", 0) * 1_000
        check_count(allowed, expect)

    def do_burst(self, step, expect):
        _, _, key = self._call(step)
        workers = self.processes.several(step["processes"])
        specs = [self.specs[name] for name in step.get("only", list(self.limits))]
        call = {"limits": specs, "key": key, "costs": step.get("costs", 1), "now": self.now}
        share = [workers[i % len(workers)] for i in range(step["count"])]
        for worker in share:
            send(worker, op=step.get("verb", "hit"), **call)
        allowed = sum(receive(worker)["allowed"] for worker in share)
        for worker in workers:
            send(worker, op="leave", now=self.now)
            receive(worker)
        check_count(allowed, expect)


def check_count(allowed: int, expect: dict[str, Any]) -> None:
    if "allowed_count" in expect:
        assert allowed == expect["allowed_count"]
    assert expect.get("allowed_min", 0) <= allowed <= expect.get("allowed_max", allowed)


def check(decision: Any, expect: dict[str, Any]) -> None:
    """Compare what *expect* names with the decision."""
    assert not expect.get("error"), "an error was expected"
    _check_state(decision, expect)
    if "reason" in expect:
        assert decision.reason == expect["reason"]
    if "decides" in expect:
        assert decision.limit.name == expect["decides"]
    if "denied_by" in expect:
        assert sorted(decision.denied_by) == sorted(expect["denied_by"])
    states = {state.name: state for state in decision.limits}
    for row in expect.get("limits", ()):
        _check_state(states[row["name"]], row)
    for name, value in expect.get("headers", {}).items():
        _check_header(decision.headers(), name, value, first=False)
    for name, value in expect.get("headers_first", {}).items():
        _check_header(decision.headers(), name, value, first=True)
    if expect.get("retry_after_reaches_t"):
        first = http_sf.parse(decision.headers()["RateLimit"].encode(), tltype="list")[0]
        assert int(decision.headers()["Retry-After"]) >= first[1].get("t", 0)
    for name, value in expect.get("problem", {}).items():
        found = decision.problem()[name]
        assert (sorted(found) if isinstance(found, list) else found) == (
            sorted(value) if isinstance(value, list) else value
        )


def _check_state(state: Any, expect: dict[str, Any]) -> None:
    for name in ("allowed", "remaining"):
        if name in expect:
            assert getattr(state, name) == expect[name], name
    if "remaining_max" in expect:
        assert state.remaining <= expect["remaining_max"]
    for name in TIMES:
        if name in expect:
            _check_time(getattr(state, name), expect[name], expect.get("tolerance_ms", 0), name)


def _check_time(found: int | None, expected: int | None, tolerance: int, name: str) -> None:
    if expected is None or found is None:
        assert found == expected, name
    else:
        assert abs(found - expected) <= tolerance, f"{name} is {found}, not {expected}"


def _check_header(headers: dict[str, str], name: str, value: str | None, *, first: bool) -> None:
    if value is None:
        assert name not in headers
    elif name in ("RateLimit", "RateLimit-Policy"):
        found = http_sf.parse(headers[name].encode(), tltype="list")
        expected = http_sf.parse(value.encode(), tltype="list")
        if first:
            found = found[:1]
        assert [item[0] for item in found] == [item[0] for item in expected], headers[name]
        for item, wanted in zip(found, expected, strict=True):
            assert dict(wanted[1]).items() <= dict(item[1]).items(), headers[name]
    else:
        assert headers[name] == value


def _instant(text: str | int) -> int:
    if isinstance(text, int):
        return text * 1_000_000
    return round(datetime.fromisoformat(text).timestamp()) * 1_000_000


def pool(url: str) -> Iterator[Processes]:
    """Give processes for bursts, and end them."""
    processes = Processes(url)
    yield processes
    processes.close()
