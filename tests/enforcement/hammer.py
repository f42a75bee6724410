"""A process that asks as fast as it can, and writes a ledger: one line a decision, for whoever counts afterwards."""

import argparse
import json
import sys
import time

from enforcement import Limit, Limiter


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("limits", help="JSON list of Limit keywords")
    parser.add_argument("--key", default="k")
    parser.add_argument("--costs", type=int, default=1)
    parser.add_argument("--calls", type=int, default=0, help="0: until the time is over")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--fleet", type=int, default=1, help="begin when so many instances are known")
    parser.add_argument("--timeout", type=float, default=1.0)
    options = parser.parse_args()
    limits = [Limit(**spec) for spec in json.loads(options.limits)]
    limiter = Limiter(options.url, timeout=options.timeout)
    limiter.peek(limits, options.key)
    while limiter._engine.agent.fleet_size < options.fleet:
        time.sleep(0.01)
    print("ready", flush=True)
    sys.stdin.readline()
    end, number = time.monotonic() + options.seconds, 0
    while time.monotonic() < end and (not options.calls or number < options.calls):
        number += 1
        began = time.time()
        decision = limiter.hit(limits, options.key, options.costs)
        took_ms = (time.time() - began) * 1_000
        print(json.dumps([began, round(took_ms, 3), decision.allowed, decision.source, decision.reason]))
        if options.pause:
            time.sleep(options.pause)
    limiter.close()


if __name__ == "__main__":
    main()
