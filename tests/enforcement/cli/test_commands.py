"""The dispatcher of ``sluicegate``: what it lists, what it imports, and how it ends."""

import os
import subprocess
import sys

import pytest

from enforcement.cli import commands, main
from enforcement.cli.commands import Subcommand, find

FAKE = Subcommand("fake", "does nothing", "fake_command", extra="cli")
NEEDS_A_LIBRARY = "import {library}\n\n\ndef main(arguments):\n    print(*arguments)\n    return 1\n"


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Add a command to the table, whose module imports a library; remove both after the test."""
    monkeypatch.setattr(commands, "COMMANDS", (*commands.COMMANDS, FAKE))
    monkeypatch.syspath_prepend(tmp_path)

    def write(library):
        (tmp_path / "fake_command.py").write_text(NEEDS_A_LIBRARY.format(library=library))

    yield write
    sys.modules.pop("fake_command", None)


def ended(*arguments):
    """Return the exit status of a command line that argparse ends."""
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    return exited.value.code


def python(script, **options):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, **options)


def test_the_help_lists_every_command_and_the_exit_statuses(capsys):
    """With --help on standard output; without any word on standard error, which is a usage error."""
    assert ended("--help") == 0
    shown = capsys.readouterr().out
    assert main([]) == 2
    captured = capsys.readouterr()

    assert (captured.out, captured.err) == ("", shown)
    assert [f"  {command.name} " in shown for command in commands.COMMANDS] == [True] * len(commands.COMMANDS)
    assert "ledger" not in shown
    assert "  0  done\n  1  a problem was found\n  2  the command line or a variable is wrong, an extra is" in shown


@pytest.mark.parametrize("name", [command.name for command in commands.COMMANDS])
def test_each_command_has_its_own_help(name, capsys, monkeypatch, tmp_path):
    """Under its own name, in one form, with the address of the documentation."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    try:
        status = main([name, "--help"])
    except SystemExit as exc:
        status = exc.code

    shown = capsys.readouterr().out
    assert status == 0
    assert shown.startswith(f"usage: sluicegate {name} ")
    assert "\n  -h, --help" in shown
    assert "\ndocumentation: /docs/" in shown


def test_the_help_names_the_documentation_of_the_known_control_plane(capsys, monkeypatch):
    monkeypatch.setenv("SLUICEGATE_URL", "https://limits.example")

    assert ended("doctor", "--help") == 0
    assert "documentation: https://limits.example/docs/command-line/\n" in capsys.readouterr().out


def test_a_word_that_is_no_command_is_a_usage_error(capsys):
    """The message names the commands that exist."""
    assert ended("docter") == 2
    names = ", ".join(command.name for command in commands.COMMANDS)

    assert f"argument COMMAND: must be one of {names}, got 'docter'" in capsys.readouterr().err


def test_the_former_name_of_a_command_works(capsys):
    """It prints exactly what the new name prints."""
    assert ended("proof", "--help") == ended("ledger", "--help") == 0
    first, second = capsys.readouterr().out.split("usage: ")[1:]

    assert first == second
    assert "sluicegate proof verify" in first
    assert find("ledger") is find("proof")


def test_no_command_is_imported_before_it_is_called():
    """Neither for the help nor for the version."""
    script = (
        "import sys\nfrom enforcement.cli import commands, main\n"
        "for words in (['--help'], ['--version'], ['nothing']):\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "modules = {command.module for command in commands.COMMANDS} | {'redis', 'typer', 'rich', 'yaml', 'httpx2'}\n"
        "print(sorted(modules & set(sys.modules)))"
    )

    assert python(script).stdout.endswith("\n[]\n")


def test_a_missing_extra_is_one_sentence(fake, capsys):
    """It names the command and what to install."""
    fake("library_that_is_not_installed")

    assert main(["fake", "--option"]) == 2
    assert capsys.readouterr() == ("", "sluicegate fake needs the extra 'cli': pip install 'sluicegate[cli]'\n")


def test_control_a_command_whose_extra_is_there_runs(fake, capsys):
    """It gets the words after its name, and its exit status is the program's."""
    fake("typer, rich, yaml, httpx2")

    assert main(["fake", "--option", "1"]) == 1
    assert capsys.readouterr() == ("--option 1\n", "")


def test_the_help_names_the_extra_of_a_command(fake, capsys):
    """Without importing the command, which may not be possible."""
    assert ended("--help") == 0
    assert "  fake        does nothing (extra 'cli')\n" in capsys.readouterr().out


def test_a_missing_module_of_the_library_is_no_missing_extra(fake):
    """It is a defect, and no installation would help."""
    fake("enforcement.no_such_module")

    with pytest.raises(ModuleNotFoundError, match=r"enforcement\.no_such_module"):
        main(["fake"])


@pytest.mark.parametrize("command", [["doctor"], ["explain", "sg_live_x"]])
@pytest.mark.parametrize(
    ("variable", "value", "arguments", "named"),
    [
        ("SLUICEGATE_REDIS_URL", "localhost:6379", [], "SLUICEGATE_REDIS_URL: must begin with redis://"),
        ("REDIS_URL", "redis://[::1/0", [], "REDIS_URL: an IPv6 address must be in brackets"),
        ("SLUICEGATE_PREFIX", "{x}", [], "SLUICEGATE_PREFIX: must be 1 to 16 ASCII characters"),
        ("SLUICEGATE_PREFIX", "sg:", ["--prefix", "{x}"], "--prefix: must be 1 to 16 ASCII characters"),
        ("REDIS_URL", "redis://127.0.0.1:1/0", ["--redis", "http://h"], "--redis: must begin with redis://"),
    ],
)
def test_an_error_names_what_the_person_wrote(monkeypatch, capsys, command, variable, value, arguments, named):
    """Nobody has written "url" or "prefix"."""
    monkeypatch.delenv("SLUICEGATE_REDIS_URL", raising=False)
    monkeypatch.setenv(variable, value)

    assert main([*command, *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"sluicegate {command[0]}: {named}")


def test_a_reader_that_has_seen_enough_gets_no_stack_trace(server):
    """``sluicegate doctor | head`` closes the pipe before all is written."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "enforcement", "doctor", "--redis", server.url]
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (141, "")
