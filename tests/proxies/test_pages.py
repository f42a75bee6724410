"""The page about proxies shows the configurations that the tests run."""

import re

import pytest

from tests.proxies.recipes import RECIPES
from tests.proxies.running import CONFIGURATIONS
from tests.repository import ROOT

PAGE = (ROOT / "templates" / "docs" / "proxies.md").read_text()
FILES = [path for recipe in RECIPES for path in sorted((CONFIGURATIONS / recipe.name).iterdir())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_configuration_is_shown_as_it_is_run(path):
    """A reader copies from the page, so it has the file and not an older one."""
    assert path.read_text() in re.findall(r"^```[a-z]+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_each_proxy_has_a_section():
    """Also one whose files are too long to be shown."""
    sections = {name.lower() for name in re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)}

    assert sections == {path.name for path in CONFIGURATIONS.iterdir()}
