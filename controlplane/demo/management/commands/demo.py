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

STOPPED_BY_SIGNAL = 130


class Command(BaseCommand):
    help = (
        "Show one limit hold over three proxies: start everything with fresh data, prove what Sluicegate promises, and "
        "stay up. With DEMO_EXIT=1 or without a terminal it stops then. It exits with 0 only if all checks held."
    )
    # The processes check their own settings; those of this one lack what it is about to choose.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--directory",
            type=Path,
            default=settings.VAR_DIR / "demo",
            help="Where its data goes; what an earlier demo left there is removed. Default: var/demo.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        logging.disable(logging.WARNING)  # every request, every outage on purpose: the story tells them better
        encoding = getattr(self.stdout, "encoding", None) or "utf-8"
        reporter = Reporter(self.line, encoding, self.style.SUCCESS, self.style.ERROR)
        stays = sys.stdout.isatty() and os.environ.get("DEMO_EXIT") != "1"
        try:
            held = asyncio.run(self.play(reporter, options["directory"], stays))
        except StackError as exc:
            raise CommandError(f"{exc}\nWhat the processes said is in {options['directory'] / 'log'}.") from exc
        if not held:
            sys.exit(STOPPED_BY_SIGNAL if held is None else 1)

    def line(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()  # as it happens, through a pipe too

    async def play(self, reporter: Reporter, directory: Path, stays: bool) -> bool | None:
        """Return whether all checks held; None if it was stopped before that was known."""
        playing = asyncio.create_task(run_demo(reporter, settings.BASE_DIR, directory, os.environ, stays=stays))
        asked_to_end = False

        def end() -> None:
            # Once: what clears up must not be interrupted.
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
