"""
The blocks of a page of documentation, run as a reader would: in order, in one shell, in a checkout.

What a block is:

- ``bash``: run; the shell and what it exported stay for the blocks after it.
- ``python``: run as a script in that shell, or kept as a file if its first line is a comment with a file name.
- ``text``: what the block before it prints; ``...`` stands for anything.
- any other word: shown and not run.

A comment before a block says what a reader does by hand: ``<!-- background: URL -->`` lets it run until the page ends,
and goes on when the URL answers.
"""

from __future__ import annotations

import doctest
import os
import re
import selectors
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

BLOCK_SECONDS = 60
DONE = "=== the block is over ==="
_FENCE = re.compile(
    r"(?:<!-- background: (?P<background>\S+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_FILE = re.compile(r"# (\w+\.py)\n")
_COMMAND = re.compile(r"\.venv/bin/(?:python (?:-m )?)?(sluicegate|manage|enforcement[.\w]*)(?:\.py)? ([^|;)<>&\n]*)")
_MAKE = re.compile(r"make ([a-z]+)")


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    line: int
    background: str | None = None
    expected: str | None = None


def read(page: str) -> list[Block]:
    """Return the blocks of a page that are run, each with the output that the page shows for it."""
    blocks: list[Block] = []
    for fence in _FENCE.finditer(page):
        line = page.count("\n", 0, fence.start("kind")) + 1
        kind, text = fence["kind"], fence["text"]
        if kind == "text" and blocks and blocks[-1].expected is None:
            last = blocks.pop()
            blocks.append(Block(last.kind, last.text, last.line, last.background, text))
        else:
            blocks.append(Block(kind, text, line, fence["background"]))
    return [block for block in blocks if block.kind in ("bash", "python")]


class Shell:
    """
    One bash for a page. ``set -e``: a command that fails ends it, and the page.

    *given* is Python that stands before each script of the page: what its reader already has. *python* runs scripts.
    """

    def __init__(
        self,
        checkout: Path,
        environment: Mapping[str, str],
        work: Path,
        given: str = "",
        python: str = ".venv/bin/python",
    ) -> None:
        self._work, self._given, self._python = work, given, python
        self._process = subprocess.Popen(
            ["bash", "--norc", "-euo", "pipefail"],
            cwd=checkout,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def run(self, block: Block) -> str:
        """
        Run a block and return what it printed.

        Raises:
            AssertionError: It failed, took too long, or printed something else than the page shows.
        """
        script, output, errors = (self._work / f"{block.line}.{end}" for end in ("sh", "out", "err"))
        script.write_text(self._script(block))
        if block.background:
            self._send(f"source {script} >{output} 2>&1 &")
            until_it_answers(block.background)
            return ""
        self._send(f"source {script} >{output} 2>{errors}\necho '{DONE}'")
        finished = self._wait()
        printed = output.read_text() if output.exists() else ""
        problem = errors.read_text() if errors.exists() else ""
        assert finished, f"line {block.line} failed:\n{block.text}\nprinted:\n{printed}\n{problem}"
        return printed

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def _script(self, block: Block) -> str:
        if block.kind == "bash":
            return "".join(_for_tests(block.text))
        name = _FILE.match(block.text)
        target = name[1] if name else f"snippet_{block.line}.py"
        given = "" if name else self._given
        quoted = f"cat >{target} <<'END OF FILE'\n{given}{block.text}END OF FILE\n"
        return quoted if name else f"{quoted}{self._python} {target}\n"

    def _send(self, command: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()

    def _wait(self) -> bool:
        """Tell whether the block came to its end."""
        assert self._process.stdout
        deadline, said = time.monotonic() + BLOCK_SECONDS, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while DONE.encode() not in said and selector.select(deadline - time.monotonic()):
                chunk = os.read(self._process.stdout.fileno(), 4096)
                if not chunk:
                    return False
                said += chunk
        return DONE.encode() in said


def _for_tests(text: str) -> Iterator[str]:
    """Leave out ``make``: it would install, or run for ever. That there is such a target is tested by itself."""
    for line in text.splitlines(keepends=True):
        if not _MAKE.match(line):
            yield line


def make_targets(page: str) -> set[str]:
    """Name what a page tells its reader to make."""
    commands = [block.text for block in read(page)]
    return {target for text in commands for line in text.splitlines() for target in _MAKE.findall(line)[:1]}


def commands(blocks: Iterable[Block]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the words of each command of ours before its first option, and the long options."""
    for block in blocks:
        for program, rest in _COMMAND.findall(block.text.replace("\\\n", " ")):
            words = rest.split()
            yield [program, *takewhile(lambda word: word[0] != "-", words)], [w for w in words if w.startswith("--")]


def until_it_answers(url: str) -> None:
    """Wait until a server answers at all, whatever it says."""
    deadline = time.monotonic() + BLOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError as refused:
            refused.close()
            return
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"{url} did not answer within {BLOCK_SECONDS} s")


def agree(expected: str, printed: str) -> str:
    """Return the difference between what a page shows and what was printed, nothing if they agree."""
    checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.REPORT_NDIFF
    if checker.check_output(expected, printed, options):
        return ""
    return checker.output_difference(doctest.Example("", expected), printed, options)
