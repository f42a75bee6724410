"""What the documentation tells people to type is typed here."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from controlplane.web.site.docs import SLUGS
from enforcement.cli import main as sluicegate
from tests.docs.conftest import Stack
from tests.docs.ready import SCRIPTS
from tests.docs.snippets import Block, Shell, agree, commands, make_targets, read
from tests.repository import ROOT
from tests.scale import scale

PAGES = [ROOT / "README.md", *(ROOT / "templates" / "docs" / f"{slug}.md" for slug in SLUGS)]

# These wait for outages, traffic and periodic work, or have what others have. What they name is looked up in every run.
FOR_PROOF = (
    *("command-line", "connecting-redis", "deployment", "how-it-works", "llm-budgets", "observing", "operating"),
    *("testing", "when-redis-is-away"),
)
RUN = scale([path for path in PAGES if path.stem not in FOR_PROOF], PAGES)
OPTION = re.compile(r"--[a-z][a-z-]*")

# A reader of the README puts the door before an application of their own.
GIVEN = {"README": "async def app(scope, receive, send): ...\n"}


@pytest.mark.proof
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_a_page_runs_as_it_is_written(path, stack, tmp_path):
    """Every command succeeds, in the page's order, and prints what the page shows."""
    environment = stack.environment | environment_of(path, stack)
    shell = Shell(stack.checkout, environment, tmp_path, GIVEN.get(path.stem, ""), scale(SCRIPTS, ".venv/bin/python"))
    try:
        for block in read(stack.here(path.read_text())):
            printed = shell.run(block)
            assert block.expected is None or not agree(block.expected, printed), difference(path, block, printed)
    finally:
        shell.close()


def environment_of(path: Path, stack: Stack) -> dict[str, str]:
    """The README speaks to a reader who has a store of their own. One page freezes its store for two seconds."""
    own = {"README": {"SLUICEGATE_REDIS_URL": stack.store_url}, "when-redis-is-away": {"SLUICEGATE_TIMEOUT_MS": "500"}}
    return own.get(path.stem, {})


def difference(path: Path, block: Block, printed: str) -> str:
    return f"{path.name}, line {block.line}:\n{agree(block.expected or '', printed)}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_a_page_names_exists(path, capsys, monkeypatch):
    """A script compiles, and what it imports from here is there. So is each command, with the options that it gets."""
    monkeypatch.setenv("COLUMNS", "200")
    blocks = read(path.read_text())
    for block in blocks:
        for module, name in imports(block.text) if block.kind == "python" else ():
            assert hasattr(import_module(module), name), f"{path.name}, line {block.line}: {module}.{name}"
    for words, options in commands(blocks):
        assert set(options) <= options_of(words, capsys), words


def imports(script):
    """Return the modules of this repository that a script imports names from, each with a name."""
    found = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.ImportFrom) and node.module]
    ours = [node for node in found if node.module.partition(".")[0] in ("controlplane", "enforcement")]
    return [(node.module, alias.name) for node in ours for alias in node.names]


def options_of(words, capsys):
    """Return what the help of a command names, and fail if there is no such command."""
    if words[0] == "manage":
        command = load_command_class(get_commands()[words[1]], words[1])
        return set(OPTION.findall(command.create_parser("", words[1]).format_help()))
    words = ["proof", *words[1:]] if words[0].startswith("enforcement") else words[1:]
    several = words[0] in ("keys", "proof", "tokens")
    with pytest.raises(SystemExit) as end:
        raise SystemExit(sluicegate([*words[: 1 + several], "--help"]))
    assert end.value.code in (0, None), words
    return set(OPTION.findall(capsys.readouterr().out))


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
