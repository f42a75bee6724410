"""A WSGI application whose limiter has decided before its server forks, as gunicorn's ``preload_app`` has it."""

import os
import time

from enforcement import Limit, Limiter

limiter = Limiter.from_env()
LIMIT = Limit(name="preloaded", quota=25, window_seconds=86_400)
limiter.hit(LIMIT, "master")


def app(environ, start_response):
    """Answer with the process, and whether it may pass."""
    decision = limiter.hit(LIMIT, "workers")
    time.sleep(0.02)  # a worker has one request at a time: both are needed
    start_response("200 OK" if decision.allowed else "429 Too Many Requests", [])
    return [f"{os.getpid()} {decision.source}".encode()]
