"""Use the tokens of standard input once each, and print the memory of this process before and after, in KiB."""

import gc
import sys
import time
from pathlib import Path

from enforcement import Limiter


def resident() -> int:
    """Return the resident memory of this process in KiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1])


def main(url: str) -> None:
    tokens = sys.stdin.read().split()
    with Limiter(url, timeout=1) as limiter:
        limiter.start()
        gc.collect()
        before = resident()
        if any(limiter.check(token).source != "store" for token in tokens):
            raise SystemExit("The store did not decide in time, so the fallback did, which takes memory of its own.")
        time.sleep(2)  # for the flush of what was counted
        gc.collect()
        print(before, resident())


if __name__ == "__main__":
    main(sys.argv[1])
