"""
What is measured in a process of its own: ``python -P probes.py PROBE TREE [STORE_URL [COUNT]]`` prints JSON.

Nothing is imported at the top that importing ``enforcement`` might load as well: it would then look free.
"""

import sys

PATIENCE = 5.0
"""Seconds a decision may take here: each must be the store's, however busy the machine is."""
SETTLING_SECONDS, SETTLING_READS = 0.15, 20


def imports() -> dict:
    """Return the milliseconds of processor time that importing takes, and the modules that it loads."""
    from time import process_time_ns

    before = set(sys.modules)
    start = process_time_ns()
    import enforcement

    bare, loaded = process_time_ns(), set(sys.modules) - before
    enforcement.Limiter  # noqa: B018 (loaded when it is asked for)
    whole, all_loaded = process_time_ns(), set(sys.modules) - before
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
    with Redis.from_url(url) as client, Limiter(url, prefix="c:", timeout=PATIENCE) as limiter:
        for algorithm in ("fixed_window", "sliding_window", "token_bucket"):
            # A quota so small that no bucket is full again, and gone, before the end.
            limit = Limit(name="many", algorithm=algorithm, quota=10, window_seconds=86_400)
            limiter.hit(limit, "first")
            before = _data(client)
            sources = {limiter.hit(limit, f"user:{i}").source for i in range(int(count))}
            if sources != {"store"}:
                raise RuntimeError(f"counters: must be counted by the store, got {sources}")
            found[algorithm] = (_data(client) - before) / int(count)
    return found


def _data(client):
    """Return the bytes that the store uses, but for the buffers of its connections."""
    from time import sleep

    found = [0, 1]
    # A table that grows is moved over to its new place bit by bit, and uses both until then.
    while found[-1] != found[-2] and len(found) < SETTLING_READS:
        sleep(SETTLING_SECONDS)
        memory = client.info("memory")
        found.append(memory["used_memory"] - memory["mem_clients_normal"])
    return found[-1]


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
