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


def test_the_help_of_a_command_has_the_form_of_that_of_the_other_commands(capsys):
    """It lists its own options, and none that all commands of Django have. These still work."""
    command_line._Utility().fetch_command("export_usage").print_help("sluicegate-admin", "export_usage")

    shown = capsys.readouterr().out
    assert shown.startswith("usage: sluicegate-admin export_usage [-h] --from TIME")
    assert re.search(r"^  --from TIME +such as 2026-11-01 or 2026-11-01T13:00Z$", shown, re.M)
    assert "--settings" not in shown
    assert shown.endswith("documentation: /docs/command-line/ of the control plane\n")
