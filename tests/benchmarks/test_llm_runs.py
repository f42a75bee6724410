"""The benchmarks of metered proxies run. LiteLLM takes half a gigabyte, so only ``make proof`` starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.doors import generator
from benchmarks.doors.metering import provider
from benchmarks.doors.provider import BODY_BYTES, PATH, THINKING_CAP, chat
from enforcement.metering.request import MeteredRequest, read_request
from tests.apart import python_of
from tests.repository import ROOT
from tests.scale import scale


@pytest.mark.parametrize("stream", [False, True])
def test_requests_are_two_kilobytes_that_a_meter_reads(stream: bool) -> None:
    body = chat(stream=stream)

    asked = read_request("POST", PATH, {}.get, body)

    assert len(body) == BODY_BYTES == 2_048
    assert isinstance(asked, MeteredRequest)
    assert (asked.attributes["stream"], asked.cap) == ("true" if stream else "false", 500)


@pytest.mark.parametrize("stream", [False, True])
def test_the_provider_answers_until_the_time_is_over(stream: bool) -> None:
    with provider() as server:
        spans, elapsed = generator.post(server.port, "", chat(stream=stream), connections=2, seconds=0.01, path=PATH)

    assert len(spans) >= 2
    assert 0 < min(spans) <= max(spans) <= elapsed


def test_clients_leave_a_model_that_thinks_when_its_answer_has_begun() -> None:
    body = chat(stream=True, thinks=True)
    asked = read_request("POST", PATH, {}.get, body)
    with provider() as server:
        spans, _ = generator.leave(server.port, "", body, seconds=0.01, path=PATH)

    assert isinstance(asked, MeteredRequest)
    assert (len(body), asked.cap) == (BODY_BYTES, THINKING_CAP)
    assert asked.hides_output(whole=True)
    assert spans


@pytest.mark.proof
@pytest.mark.skipif(scale(small=True, full=False), reason="LiteLLM takes half a gigabyte: make proof starts it.")
def test_every_row_beside_litellm_has_figures(tmp_path: Path) -> None:
    """No comparison is left out in silence."""
    python_of("litellm")
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "llm", "--quick", "--output", str(output)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert [row["figure"] for row in found["rows"] if row["ratio"] is None] == []
    assert "LiteLLM" in found["versions"]
