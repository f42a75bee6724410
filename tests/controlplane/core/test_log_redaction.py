import os
import subprocess
import sys

import pytest

from enforcement.model.tokens import mint

LOG = """
import logging, sys
import django
django.setup()
logging.getLogger("django.server").info('"GET /admin/projects/token/?q=%s HTTP/1.1" 200', sys.argv[1])
try:
    raise ValueError(sys.argv[1])
except ValueError:
    logging.getLogger("anywhere").exception("It failed")
"""


@pytest.mark.parametrize("kind", ["live", "mgmt"])
def test_no_log_line_has_a_whole_secret(kind):
    """Whatever a line or an error says, such as an address that somebody typed, it shows what people may see."""
    secret, environment = mint(kind), {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    command = [sys.executable, "-c", LOG, secret]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert secret not in done.stderr
    assert f"?q={secret[:12]}\\u2026 HTTP/1.1" in done.stderr
    assert f"ValueError: {secret[:12]}" in done.stderr
