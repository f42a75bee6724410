"""``sluicegate proof``, run as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from enforcement import Limit, Limiter
from enforcement.proof.command import main
from tests.enforcement.proof.lines import DECLARED, HEADER, LINE


def run(*arguments):
    """Run the command as a person does."""
    command = [sys.executable, "-m", "enforcement.proof", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_store_is_proved_by_two_commands(server, world, tmp_path, capsys):
    """Two processes send more than the limit admits. All claims hold, until the counter is reset behind their back."""
    load = ["--limit", "30/day", "--key", "proof", "--processes", 2, "--calls", 40, "--timeout", "1"]
    made = run("load", "--url", server.url, *load, "--out", tmp_path)
    ledgers = made.stdout.split()
    assert (made.returncode, len(ledgers)) == (0, 2), made.stderr

    proof = ["verify", *ledgers, "--redis", server.url, "--saturated", "--margin-ms", "200"]
    assert main(proof) == 0
    assert "30-per-day: admitted in a window with the store" in capsys.readouterr().out
    assert main([*proof, "--json", "--timeout-ms", "0.001", "--margin-ms", "0"]) == 1
    claims = {claim["claim"]: claim["held"] for claim in json.loads(capsys.readouterr().out)}
    assert (claims["a decision takes"], claims["duplicate request ids"]) == (False, True)

    with Limiter(server.url, timeout=1.0) as other:
        other.reset(Limit.parse("30/day"), "proof")
    assert main(proof) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_a_token_is_checked_and_not_written_down(server, world, tmp_path, capsys):
    """Its policies are the limits, and the ledger names them; a secret does not belong on a disk."""
    secret = world.everything({"name": "rpm", "algorithm": "fixed_window", "quota": 5, "window_seconds": 86_400})
    (tmp_path / "token").write_text(secret + "\n")
    load = ["--url", server.url, "--token-file", str(tmp_path / "token"), "--calls", "9", "--out", str(tmp_path)]
    assert main(["load", *load]) == 0
    [ledger] = capsys.readouterr().out.split()

    assert secret not in Path(ledger).read_text()
    assert main(["verify", ledger, "--redis", server.url, "--late", "9"]) == 0
    assert "api/rpm: admitted in a window with the store" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["verify", "/nowhere/a.ledger"], "/nowhere/a.ledger, line 0: No such file"),
        (["load"], "needs either --limit or --limits, or else --token-file"),
        (["load", "--limit", "often"], '"100/minute"'),
        (["load", "--limits", "{}"], "must be a JSON list"),
        (["load", "--limits", '[{"quota":1}]'], "window_seconds"),
        (["load", "--token-file", "/nowhere/token"], "/nowhere/token: No such file"),
    ],
)
def test_a_command_that_cannot_be_run_says_why(arguments, error, capsys, tmp_path):
    """One sentence on standard error and status 2."""
    extra = ["--out", str(tmp_path), "--instance", "x"] if arguments[0] == "load" else []
    assert main([*arguments, *extra]) == 2
    assert error in capsys.readouterr().err


def test_a_store_that_cannot_be_asked_is_no_proof(tmp_path, capsys):
    """A claim about counters that nobody read is not held."""
    path = tmp_path / "a.ledger"
    path.write_text(f"{HEADER}\n{DECLARED}\n{LINE}\n")
    assert main(["verify", str(path), "--redis", "redis://127.0.0.1:1/0"]) == 2
    assert "the store does not reply" in capsys.readouterr().err
    assert main(["verify", str(path), "--limits", '[{"name":"other","quota":1,"window_seconds":60}]']) == 2
    assert "must be names of limits in the ledgers, got 'other'" in capsys.readouterr().err
