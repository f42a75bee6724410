"""
``python -m benchmarks`` measures decisions beside their peers, ``compare`` two trees, ``llm`` proxies for models,
``admin`` the pages of the admin, ``drain`` how usage gets into the database, ``publish`` how changes get out of it, and
``cluster`` decisions on several primaries.
"""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Run one of the seven commands. Return its exit code."""
    # Each command imports what it needs: comparing trees needs no peers and no matplotlib.
    if arguments[:1] == ["compare"]:
        from benchmarks.compare import command

        return command.main(arguments[1:])
    if arguments[:1] == ["llm"]:
        from benchmarks import llm

        return llm.main(arguments[1:])
    if arguments[:1] == ["admin"]:
        from benchmarks import admin

        return admin.main(arguments[1:])
    if arguments[:1] == ["drain"]:
        from benchmarks import drain

        return drain.main(arguments[1:])
    if arguments[:1] == ["publish"]:
        from benchmarks import publish

        return publish.main(arguments[1:])
    if arguments[:1] == ["cluster"]:
        from benchmarks.cluster import command as cluster

        return cluster.main(arguments[1:])
    from benchmarks import bench

    return bench.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
