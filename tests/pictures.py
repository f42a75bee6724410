"""
Make the pictures of the admin in README.md and in the documentation again:

    python -m tests.pictures

takes them in a headless Chromium from the pages of an invented installation, which tests/controlplane/web/kit/story.py
describes. The numbers are the same each time, but for what depends on the hour of the day.
"""

import os
import sys

import pytest

from tests.repository import ROOT

if __name__ == "__main__":
    os.environ["SLUICEGATE_PICTURES"] = str(ROOT / "controlplane" / "static" / "controlplane")
    sys.exit(pytest.main(["-q", "-n", "0", str(ROOT / "tests" / "controlplane" / "web" / "kit" / "test_pictures.py")]))
