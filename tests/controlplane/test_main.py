"""``sluicegate-admin`` without a command."""

import re

from controlplane import __main__ as command_line


def test_the_help_has_the_form_of_that_of_the_other_command(monkeypatch, capsys):
    """Our own commands come first, each with what it does."""
    monkeypatch.setattr("sys.argv", ["sluicegate-admin", "--help"])

    command_line.main()

    shown = capsys.readouterr().out
    assert shown.startswith("usage: sluicegate-admin [-h] COMMAND ...\n\nRun the control plane")
    assert re.search(r"^  up +run the whole platform on this machine until Ctrl-C", shown, re.M)
    assert "\ncommands of Django:\n  changepassword, check," in shown
    assert shown.endswith("documentation: /docs/ of the control plane\n")
