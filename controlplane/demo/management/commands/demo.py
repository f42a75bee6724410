import asyncio
import contextlib
import logging
import os
import signal
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from controlplane.demo.reporter import Reporter
from controlplane.demo.run import run_demo
from controlplane.stack.locks import StackError
from enforcement.embedded import ServerError

STOPPED_BY_SIGNAL = 130


class Command(BaseCommand):
    help = (
        "Start the whole platform with new data, show that one limit holds over three proxies, and keep running. With "
        "DEMO_EXIT=1 or without a terminal, stop at the end. The exit code is 0 only if all checks passed."
    )
    # The processes check their own settings. Those of this process lack the values that it is about to choose.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--directory",
            type=Path,
            default=settings.VAR_DIR / "demo",
            help="The directory for the data. The data of an earlier demo is deleted. Default: var/demo.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        logging.disable(logging.WARNING)  # the demo causes errors on purpose, and reports them itself
        encoding = getattr(self.stdout, "encoding", None) or "utf-8"
        reporter = Reporter(self.line, encoding, self.style.SUCCESS, self.style.ERROR)
        stays = sys.stdout.isatty() and os.environ.get("DEMO_EXIT") != "1"
        try:
            held = asyncio.run(self.play(reporter, options["directory"], stays))
        except (StackError, ServerError) as exc:
            raise CommandError(f"{exc}\nThe logs of the processes are in {options['directory'] / 'log'}.") from exc
        if not held:
            sys.exit(STOPPED_BY_SIGNAL if held is None else 1)

    def line(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()  # so that a reader of a pipe sees each line at once

    async def play(self, reporter: Reporter, directory: Path, stays: bool) -> bool | None:
        """Run the demo, and return whether all checks passed, or None if the demo was stopped before its end."""
        playing = asyncio.create_task(run_demo(reporter, settings.BASE_DIR, directory, os.environ, stays=stays))
        asked_to_end = False

        def end() -> None:
            # Only once, because a second signal must not interrupt the cleanup.
            nonlocal asked_to_end
            if not asked_to_end:
                self.line("\nStopping everything.")
                playing.cancel()
            asked_to_end = True

        for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(sent, end)
        with contextlib.suppress(asyncio.CancelledError):
            await playing
        return reporter.passed
