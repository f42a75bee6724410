"""A process of its own for the vectors: decides what stands on each line of its input, and answers with a line."""

import json
import sys
from contextlib import ExitStack

from enforcement import Denied, Limit, Limiter


class Worker:
    """One limiter on the store whose URL is given, under the clock that each line carries."""

    def __init__(self, url: str) -> None:
        self.now = 0
        self.limiter = Limiter(url, clock=lambda: self.now, timeout=2.0)
        self.held = ExitStack()

    def handle(self, line: dict) -> dict:
        self.now = line["now"]
        if line["op"] == "leave":
            self.held.close()
            return {}
        limits = [Limit(**limit) for limit in line["limits"]]
        if line["op"] == "hit":
            return {"allowed": self.limiter.hit(limits, line["key"], line["costs"]).allowed}
        try:
            self.held.enter_context(self.limiter.admit(limits, line["key"], line["costs"]))
        except Denied:
            return {"allowed": False}
        return {"allowed": True}


if __name__ == "__main__":
    worker = Worker(sys.argv[1])
    for text in sys.stdin:
        print(json.dumps(worker.handle(json.loads(text))), flush=True)
