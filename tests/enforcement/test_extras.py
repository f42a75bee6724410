"""What a person reads who imports something whose packages are not installed."""

import subprocess
import sys

import pytest

SENTENCES = {
    ("enforcement.doors.fastapi", "fastapi"): (
        "The FastAPI integration needs the package fastapi: pip install 'sluicegate[fastapi]'"
    ),
    ("enforcement.doors.starlette", "starlette"): (
        "The Starlette integration needs the package starlette: pip install 'sluicegate[starlette]'"
    ),
    ("enforcement.doors.flask", "flask"): (
        "The Flask integration needs the package flask: pip install 'sluicegate[flask]'"
    ),
    ("enforcement.doors.django", "django"): "The Django integration needs the package django: pip install 'Django'",
    ("enforcement.doors.drf", "rest_framework"): (
        "The Django REST framework integration needs the package rest_framework: pip install 'djangorestframework'"
    ),
    ("enforcement.doors.litellm", "litellm"): (
        "The LiteLLM integration needs the package litellm: pip install 'litellm[proxy]'"
    ),
    ("enforcement.doors.proxy", "httptools"): "The proxy needs the package httptools: pip install 'sluicegate[proxy]'",
    ("enforcement.doors.proxy.websocket", "wsproto"): (
        "WebSocket forwarding needs the package wsproto: pip install 'sluicegate[websocket]'"
    ),
    ("controlplane.__main__", "celery"): (
        "The control plane needs the package celery: pip install 'sluicegate[controlplane]'"
    ),
    ("enforcement.exporters.prometheus", "prometheus_client"): (
        "The exporter for Prometheus needs the package prometheus_client: pip install 'sluicegate[prometheus]'"
    ),
    ("enforcement.exporters.opentelemetry", "opentelemetry"): (
        "The exporter for OpenTelemetry needs the package opentelemetry: pip install 'sluicegate[opentelemetry]'"
    ),
}


def without(package: str, statement: str) -> subprocess.CompletedProcess[str]:
    """Run a statement in a Python that has not got a package."""
    program = f"import sys; sys.modules[{package!r}] = None; {statement}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("module", "package"), SENTENCES, ids=[module for module, _ in SENTENCES])
def test_missing_package_is_named_with_what_to_install(module: str, package: str) -> None:
    """The last line of the error is a sentence that can be followed."""
    done = without(package, f"import {module}")

    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {SENTENCES[module, package]}"


def test_the_tools_for_tests_need_no_pytest() -> None:
    """The documentation uses them without it. Only the fixtures need it, and their error says so."""
    tools = "from enforcement.testing import Clock, Published, Store, assert_limited"

    assert without("pytest", tools).stderr == ""
    last_line = without("pytest", "from enforcement.testing import limiter").stderr.splitlines()[-1]
    assert last_line == "ModuleNotFoundError: This fixture needs the package pytest: pip install 'pytest'"


def test_the_command_of_the_control_plane_names_its_extra() -> None:
    """The base install has the command, too. It ends with one sentence and status 2 in place of a traceback."""
    done = without("celery", "import sys; from enforcement.cli.admin import main; sys.exit(main())")

    sentence = "The control plane needs the package celery: pip install 'sluicegate[controlplane]'"
    assert (done.returncode, done.stderr) == (2, f"sluicegate-admin: {sentence}\n")
