"""What the documentation tells people to type is typed here."""

import re
from pathlib import Path

import pytest

from controlplane.docs import SLUGS
from tests.docs.conftest import Stack
from tests.docs.snippets import Block, Shell, agree, make_targets, read
from tests.repository import ROOT

PAGES = [ROOT / "README.md", *(ROOT / "templates" / "docs" / f"{slug}.md" for slug in SLUGS)]

# A reader of the README puts the door before an application of their own.
GIVEN = {"README": "async def app(scope, receive, send): ...\n"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_runs_as_it_is_written(path, stack, tmp_path):
    """Every command succeeds, in the page's order, and prints what the page shows."""
    shell = Shell(stack.checkout, stack.environment | environment_of(path, stack), tmp_path, GIVEN.get(path.stem, ""))
    try:
        for block in read(stack.here(path.read_text())):
            printed = shell.run(block)
            assert block.expected is None or not agree(block.expected, printed), difference(path, block, printed)
    finally:
        shell.close()


def environment_of(path: Path, stack: Stack) -> dict[str, str]:
    """The README speaks to a reader who has a store of their own."""
    return {"SLUICEGATE_REDIS_URL": stack.store_url} if path.stem == "README" else {}


def difference(path: Path, block: Block, printed: str) -> str:
    return f"{path.name}, line {block.line}:\n{agree(block.expected or '', printed)}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_is_made_can_be_made(path):
    """A page names no target that the Makefile lacks."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert make_targets(path.read_text()) <= targets


def test_blocks_are_read_with_what_they_print():
    """Output belongs to the block before it; other kinds of blocks are not run."""
    page = "# T\n\n```bash\necho 1\n```\n\n```text\n1\n```\n\n```console\nrm -rf /\n```\n\n```python\npass\n```\n"

    assert read(page) == [Block("bash", "echo 1\n", 3, None, "1\n"), Block("python", "pass\n", 15)]


def test_output_of_a_block_that_is_not_run_is_no_expectation():
    """It belongs to what a reader types elsewhere."""
    page = "```bash\ntrue\n```\n\n```console\nls\n```\n\n```text\nfile\n```\n"

    assert read(page) == [Block("bash", "true\n", 1)]


def test_a_command_that_fails_fails_the_page(tmp_path):
    """The control: a page with a wrong command is noticed, also in the middle of a block."""
    shell = Shell(tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path)

    with pytest.raises(AssertionError, match="line 1 failed"):
        shell.run(Block("bash", "false\necho fine\n", 1))
    shell.close()


def test_other_output_is_a_difference():
    """The control: a page that shows something else is noticed; dots stand for anything."""
    assert agree("a ... c\n", "a b c\n") == ""
    assert agree("a b d\n", "a b c\n") != ""
