"""
Keys that many use, which one command of one account can spoil.

An account that may append to a stream may append with the last possible id, and nobody can append after that. Whoever
may write a key in some other way may give it another type. Neither ends by itself, so a task deletes such a key. What
it held is lost, and that is said: in the log, by a metric, and for an intake on the page of its project.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import redis
from django.db.models import F
from redis.exceptions import NoPermissionError

from controlplane.core import store
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing.models import RepairedKey
from enforcement.usage.shards import MAX_SHARDS

logger = logging.getLogger(__name__)

HEARTBEATS, USAGE, DENIALS, SHARDS, INTAKE, LOG = "heartbeats", "usage", "denials", "shards", "intake", "log"
KINDS = (HEARTBEATS, USAGE, DENIALS, SHARDS, INTAKE, LOG)
# The store itself makes the ids, by its clock.
MOST_AHEAD = timedelta(hours=1)

# Delete a key only if it is still as it was seen, in one step: an entry that arrives meanwhile must not be lost.
# KEYS: the key. ARGV: the type that it should have, and the first milliseconds that no id of a stream may have.
# Returns 1 if the key was deleted.
DELETE = """
local kind = redis.call('TYPE', KEYS[1])['ok']
if kind == 'none' then return 0 end
if kind == ARGV[1] then
  if kind ~= 'stream' or redis.call('XLEN', KEYS[1]) > 0 then return 0 end
  local info, last = redis.call('XINFO', 'STREAM', KEYS[1]), '0-0'
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
  if tonumber(string.match(last, '^%d+')) < tonumber(ARGV[2]) then return 0 end
end
return redis.call('DEL', KEYS[1])
"""


@dataclass(frozen=True, slots=True)
class SharedKey:
    """A key, what it is for, the type that it should have, and the id of the project of an intake."""

    name: str
    kind: str
    type: str
    project: str = ""


def shared_keys() -> Iterator[SharedKey]:
    """Yield the keys that a task looks after."""
    keys = store.keys()
    yield SharedKey(keys.instances, HEARTBEATS, "zset")
    yield SharedKey(keys.usage, USAGE, "stream")
    for shard in range(MAX_SHARDS):
        yield SharedKey(keys.usage_shard(shard), USAGE, "stream")
    yield SharedKey(f"{keys.usage}:rejected", USAGE, "stream")
    yield SharedKey(keys.denials, DENIALS, "stream")
    yield SharedKey(keys.usage_shards, SHARDS, "string")
    yield SharedKey(keys.log, LOG, "stream")
    for project in Project.objects.filter(has_intake=True).values_list("pk", flat=True):
        yield SharedKey(keys.intake(project), INTAKE, "stream", project)


def repair(now: datetime, client: redis.Redis | None = None) -> list[str]:
    """
    Delete the keys that nobody can use as they are, and return a line for each of them.

    A stream whose last id is far ahead is deleted once it is empty, after a drain has taken what is there.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    client = client or store.connection()
    lines = [_repaired(client, *found, now) for found in spoilt(client, shared_keys())]
    return [line for line in lines if line]


def spoilt(client: redis.Redis, keys: Iterable[SharedKey]) -> list[tuple[SharedKey, str]]:
    """
    Return the keys of another type, and the streams whose last id is far ahead, each with the reason.

    What an account of an earlier version may not look at is left out. Raises redis-py's errors.
    """
    known = list(keys)
    with client.pipeline(transaction=False) as pipe:
        for key in known:
            pipe.type(key.name)
        for key in known:
            if key.type == "stream":
                pipe.xinfo_stream(key.name)
        replies = pipe.execute(raise_on_error=False)
    infos = iter(replies[len(known) :])
    limit_ms = _limit_ms(client)
    result = []
    for key, kind in zip(known, replies, strict=False):
        info = next(infos) if key.type == "stream" else None
        if isinstance(kind, Exception):
            if not isinstance(kind, NoPermissionError):
                raise kind
        elif kind not in (key.type, "none"):
            result.append((key, f"it was a {kind} and no {key.type}"))
        elif isinstance(info, dict) and _milliseconds(info["last-generated-id"]) >= limit_ms:
            result.append((key, "the next id of this stream was far ahead"))
    return result


def _limit_ms(client: redis.Redis) -> int:
    return int((store.time_of(client) + MOST_AHEAD).timestamp()) * 1000


def _milliseconds(entry: str) -> int:
    return int(str(entry).partition("-")[0])


def _repaired(client: redis.Redis, key: SharedKey, reason: str, now: datetime) -> str | None:
    if not client.eval(DELETE, 1, key.name, key.type, _limit_ms(client)):
        return None
    RepairedKey.objects.get_or_create(
        key=key.name, defaults={"kind": key.kind, "project_id": key.project, "reason": reason, "last_at": now}
    )
    RepairedKey.objects.filter(key=key.name).update(reason=reason, last_at=now, times=F("times") + 1)
    logger.error("%s was deleted with all that it held: %s.", key.name, reason)
    return f"{key.name} was deleted: {reason}"
