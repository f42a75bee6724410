"""Every command of a server, tried by an account on a key without being run: ``ACL DRYRUN`` of ``COMMAND LIST``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redis import Redis


class CommandTable:
    """What one account may do. Keys are tried one at a time, so a command with two is tried with one key twice."""

    def __init__(self, client: Redis, account: str) -> None:
        self._client = client
        self._account = account
        self._infos = dict(self._all())

    def passing(self, key: str) -> set[str]:
        """Return the commands that take keys, and are granted for this one."""
        return {name for name, info in self._infos.items() if info[8] and self._passes(name, _arguments(info, key))}

    def passing_without_key(self) -> set[str]:
        """Return the commands that take no key, and are granted."""
        return {name for name, info in self._infos.items() if not info[8] and self._passes(name, _arguments(info, ""))}

    def __len__(self) -> int:
        return len(self._infos)

    def _all(self) -> Iterator[tuple[str, list[Any]]]:
        names = sorted(self._client.execute_command("COMMAND LIST"))
        for info in self._client.execute_command("COMMAND INFO", *names):
            if not info[9]:  # one with subcommands is never called itself
                yield str(info[0]), info

    def _passes(self, name: str, arguments: list[str]) -> bool:
        answer = self._client.execute_command("ACL DRYRUN", self._account, *name.split("|"), *arguments)
        assert answer == "OK" or "has no permissions" in answer, f"{name} {arguments}: {answer}"
        return answer == "OK"


def _arguments(info: list[Any], key: str) -> list[str]:
    """Return arguments of the right number, with the key at each place where the command says that it takes one."""
    name, arity = str(info[0]), int(info[1])
    words = 1 + name.count("|")
    line = ["1"] * max(abs(arity), words)
    for spec in map(_pairs, info[8]):
        _place(line, _pairs(spec["begin_search"]), _pairs(spec["find_keys"]), key)
    return line[words:]


def _place(line: list[str], begin: dict[str, Any], find: dict[str, Any], key: str) -> None:
    where, how = _pairs(begin["spec"]), _pairs(find["spec"])
    if begin["type"] == "index" and find["type"] == "range":
        _put(line, int(where["index"]), key)
    elif begin["type"] == "index" and find["type"] == "keynum":
        _put(line, int(where["index"]) + int(how["keynumidx"]), "1")
        _put(line, int(where["index"]) + int(how["firstkey"]), key)
    elif begin["type"] == "keyword" and key not in line:
        line += [str(where["keyword"]), key] + ["0"] * (where["keyword"] == "STREAMS")


def _put(line: list[str], at: int, text: str) -> None:
    line.extend("1" for _ in range(len(line), at + 1))
    line[at] = text


def _pairs(flat: list[Any]) -> dict[str, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
