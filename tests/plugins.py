"""
A pytest plugin that imports other plugins for the folders that use them.

pytest would import each plugin that is installed, in each process: three seconds for a file whose tests take a tenth of
one. ``pytest`` for all tests imports all of them. A test outside of the folders of its plugin fails, because its
fixtures and marks are unknown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.repository import ROOT

TESTS = ROOT / "tests"
EVERYWHERE = ("xdist.plugin", "pytest_asyncio.plugin", "_hypothesis_pytestplugin")
DJANGO = (
    "controlplane",
    "docker/test_monitoring.py",
    "docker/test_prometheus.py",
    "docker/test_requirements.py",
    "docs",
    "enforcement/cli/remote",
    "enforcement/doors",
    "enforcement/service/test_vectors.py",
    "enforcement/test_vectors.py",
    "test_databases.py",
    "test_installed.py",
)
USED_IN = {
    "pytest_django.plugin": DJANGO,
    "tests.databases": DJANGO,  # after the plugin whose fixtures it overrides
    "pytest_playwright.pytest_playwright": ("controlplane", "docs", "test_accessibility.py", "test_browsers.py"),
    "schemathesis.pytest.plugin": ("controlplane/web/restkit/test_schema_fuzz.py",),
}


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Import plugins. This is the one hook that runs early enough for the hooks of the plugins that it adds."""
    config = pluginmanager.get_plugin("pytestconfig")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    for name in [*EVERYWHERE, *used_by(chosen(config))]:
        pluginmanager.import_plugin(name)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Spare an import of Hypothesis whose plugin would look for examples that failed, where none was tried."""
    if "hypothesis" not in sys.modules and session.config.option.dist == "no":
        session.config.pluginmanager.unregister(name="_hypothesis_pytestplugin")


def used_by(chosen: Iterable[Path]) -> Iterator[str]:
    """Yield the plugins that the tests below some paths use. No path stands for all tests."""
    paths = list(chosen) or [ROOT]
    for name, places in USED_IN.items():
        folders = [TESTS / place for place in places]
        if any(path.is_relative_to(one) or one.is_relative_to(path) for path in paths for one in folders):
            yield name


def chosen(config: pytest.Config) -> list[Path]:
    """Return the paths that a command line names, or none if it is for all tests."""
    named = [name.partition("::")[0] for name in config.known_args_namespace.file_or_dir]
    paths = [config.invocation_params.dir / name for name in named]
    # What does not exist is the value of an option of another plugin.
    found = [path.resolve() for path in paths if path.exists()]
    if not found and "--fast" in config.invocation_params.args:
        found = [ROOT / name for name in (TESTS / "fast.txt").read_text().split()]
    return found
