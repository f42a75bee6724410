"""The command ``sluicegate proxy``. It runs the reverse proxy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from enforcement.cli import servers
from enforcement.doors.proxy import create_app

STOP_SECONDS: Final = 30
"""How long requests may go on once the proxy is told to stop. Some stream long answers."""

_EPILOG: Final = """\
The store, the upstream, the trusted proxies and everything else are set by environment variables; the page "The
ready-made proxy" of the documentation lists them.

exit status:
  0  it was stopped
  2  an option or variable is wrong, or the server is not installed
"""


def main(arguments: Sequence[str]) -> int:
    """Run the proxy until it is stopped, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="sluicegate proxy",
        description="Run the reverse proxy, which limits the requests to an upstream.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    servers.add_options(parser, port=8080, server="uvicorn")
    options = parser.parse_args(arguments)
    try:
        create_app()  # does no I/O to the store, and tells at once what is wrong
    except ValueError as exc:
        print(f"sluicegate proxy: {exc}", file=sys.stderr)
        return servers.REFUSED
    return servers.serve("proxy", "enforcement.doors.proxy:create_app", options, grace=STOP_SECONDS)
