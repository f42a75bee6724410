"""Policies with limits of tokens and money, and what requests have used of them."""

from enforcement.store_calls.reservations import open_reservations
from tests.enforcement.world import PROJECT, fixed, used_of

PRICE = {"model": "gpt-*", "input": 1_000_000, "output": 4_000_000}
TPM, USD = fixed(100_000, name="tpm", unit="tokens"), fixed(10_000_000, name="usd", unit="micros")
RPM = fixed(1_000, name="rpm")
SLOTS = {"name": "slots", "algorithm": "concurrency", "quota": 4, "window_seconds": 60}
HELLO = {"model": "gpt-x", "max_tokens": 500, "messages": [{"role": "user", "content": "x" * 400}]}
STREAM = {**HELLO, "stream": True}


def publish_metered(world, *limits, **metering):
    """Publish prices and a policy of these limits, and return the secret of its token."""
    world.published.prices(PRICE)
    secret = world.everything(*limits)
    if metering:
        policy = world.policy("api", *limits)
        policy["policy:pol_api"]["metering"] = metering
        world.publish(policy)
    return secret


async def used(limiter, secret):
    """Return how many permits of each limit a token has used, by name."""
    return used_of(await limiter.check(secret, {"requests": 0, "tokens": 0, "micros": 0}))


def records(world):
    return open_reservations(world.client, world.keys, PROJECT)
