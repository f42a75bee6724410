"""``sluicegate proxy``: what it says when it cannot start. How it runs, tests/enforcement/doors/proxy shows."""

from __future__ import annotations

import sys

import pytest

from enforcement.cli import main, proxy


@pytest.fixture(autouse=True)
def upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_UPSTREAM_URL", "http://127.0.0.1:1")


def test_a_variable_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a server is started."""
    monkeypatch.setenv("SLUICEGATE_UPSTREAM_URL", "nowhere")

    assert main(["proxy"]) == 2
    assert capsys.readouterr().err.startswith("sluicegate proxy: SLUICEGATE_UPSTREAM_URL: must be an http or https URL")


@pytest.mark.parametrize(("server", "extra"), [("uvicorn", "proxy"), ("h2corn", "service")])
def test_a_server_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: str, extra: str
) -> None:
    """In one sentence."""
    monkeypatch.setitem(sys.modules, server, None)

    assert proxy.main(["--server", server]) == 2
    sentence = f"sluicegate proxy needs the extra '{extra}': pip install 'sluicegate[{extra}]'\n"
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize("workers", ["0", "257", "two"])
def test_a_number_of_workers_is_checked(capsys: pytest.CaptureFixture[str], workers: str) -> None:
    """Here, where the message can say what is allowed."""
    with pytest.raises(SystemExit):
        proxy.main(["--workers", workers])

    assert "must be an integer from 1 to 256" in capsys.readouterr().err
