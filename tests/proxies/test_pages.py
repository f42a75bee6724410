"""The page about proxies shows the configurations that the tests run."""

import re

import pytest

from enforcement.service.settings import ServiceSettings
from tests.proxies.recipes import RECIPES
from tests.proxies.running import CONFIGURATIONS
from tests.repository import ROOT

PAGE, SERVICE = ((ROOT / "templates" / "docs" / name).read_text() for name in ("proxies.md", "service.md"))
FILES = [path for recipe in RECIPES for path in sorted((CONFIGURATIONS / recipe.name).iterdir())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_configuration_is_shown_as_it_is_run(path):
    """A reader copies from the page, so it has the file and not an older one."""
    assert path.read_text() in re.findall(r"^```[a-z]+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_each_proxy_has_a_section():
    """Also one whose files are too long to be shown."""
    sections = {name.lower() for name in re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)}

    assert sections == {path.name for path in CONFIGURATIONS.iterdir()}


def test_every_variable_of_the_service_is_listed():
    """None is read that an operator cannot look up, and none is listed that is not read."""
    listed = set(re.findall(r"^\| `(SLUICEGATE_[A-Z_]+)`", SERVICE, re.MULTILINE))
    asked = {"SLUICEGATE_DEADLINE_MS"}  # the settings of the limiter are read apart

    class Environment(dict[str, str]):
        def get(self, name, default=None):
            asked.add(name)
            return default

    ServiceSettings.from_env(Environment())

    assert listed == asked
