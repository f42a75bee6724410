"""What tests of a cluster publish, and which of its nodes counts what."""

from enforcement import Limit
from enforcement.model.keys import Keys
from enforcement.model.tokens import mint
from enforcement.plan.binding import bind_in_code
from tests.enforcement.world import used_of

HOUR = 3_600
LIMIT = Limit(name="rate", quota=10, window_seconds=HOUR)
PROJECTS = 6


def spread(world, *, everyone, project, **more):
    """Publish a global policy and one for each of six projects, with a token each; return the tokens' secrets."""
    secrets = [mint("live") for _ in range(PROJECTS)]
    documents = {
        "global": {"schema": 1, "policy": "pol_all"},
        **world.policy("all", *everyone),
        **world.policy("api", *project),
    }
    tokens = {}
    for number, secret in enumerate(secrets):
        ident = f"proj_{number}"
        fields = {"id": ident, "slug": ident, "active": True, "policy": None, "overrides": []}
        documents[f"project:{ident}"] = {"schema": 1, **fields}
        tokens[secret] = world.token("pol_api", project=ident, **more)
    world.publish(documents, tokens)
    return secrets


def used(limiter, secret):
    """Return what each limit of a token has counted, by name."""
    return used_of(limiter.check(secret, costs=0))


def counter_of(key):
    """Return the counter of the limit for a key in code."""
    return bind_in_code((LIMIT,), key, Keys())[0].key


def keys_of_thirds(cluster):
    """Return a key in code for each primary."""
    found = {cluster.index_of(counter_of(key)): key for key in map("user:{}".format, range(100))}
    return [found[i] for i in range(3)]
