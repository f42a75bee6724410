"""
What is measured in a process of its own: ``python -P probes.py PROBE TREE [STORE_URL [COUNT]]`` prints JSON.

Nothing is imported at the top that importing ``enforcement`` might load as well: it would then look free.
"""

import sys


def imports() -> dict:
    """Return the milliseconds that importing takes, and the modules that it loads."""
    from time import perf_counter_ns

    before = set(sys.modules)
    start = perf_counter_ns()
    import enforcement

    bare, loaded = perf_counter_ns(), set(sys.modules) - before
    enforcement.Limiter  # noqa: B018 (loaded when it is asked for)
    whole, all_loaded = perf_counter_ns(), set(sys.modules) - before
    return {
        "enforcement": {"ms": (bare - start) / 1e6, "modules": sorted(loaded)},
        "enforcement.Limiter": {"ms": (whole - start) / 1e6, "modules": sorted(all_loaded)},
    }


def idle(url: str) -> dict:
    """Return the bytes that Python allocates for a limiter which was started and decides nothing."""
    import gc
    import tracemalloc

    from enforcement import Limit, Limiter

    with Limiter(url, prefix="w:") as limiter:  # loads what is loaded when it is first needed
        limiter.hit(Limit.parse("10/minute"), "user:1")
    gc.collect()
    tracemalloc.start()
    limiter = Limiter(url, prefix="i:")
    limiter.start()
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    limiter.close()
    return {"bytes": held}


def counters(url: str, count: str) -> dict:
    """Return the bytes that the store takes for one counter of each algorithm, over many of them."""
    from redis import Redis

    from enforcement import Limit, Limiter

    found = {}
    with Redis.from_url(url) as client, Limiter(url, prefix="c:") as limiter:
        for algorithm in ("fixed_window", "sliding_window", "token_bucket"):
            limit = Limit(name="many", algorithm=algorithm, quota=1_000_000, window_seconds=86_400)
            limiter.hit(limit, "first")
            before = client.info("memory")["used_memory"]
            for i in range(int(count)):
                limiter.hit(limit, f"user:{i}")
            found[algorithm] = (client.info("memory")["used_memory"] - before) / int(count)
    return found


def main(probe: str, tree: str, *arguments: str) -> None:
    """Run one probe with the ``enforcement`` of a tree and print what it found."""
    sys.path.insert(0, tree)
    found = globals()[probe](*arguments)
    file = sys.modules["enforcement"].__file__
    if file != f"{tree}/enforcement/__init__.py":
        raise ImportError(f"enforcement: must be that of {tree}, got {file}")
    import json

    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
