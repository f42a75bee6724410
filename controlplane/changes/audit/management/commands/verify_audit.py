import re
import sys
from argparse import ArgumentParser, ArgumentTypeError
from itertools import islice
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from controlplane.changes.audit import chain

SHOWN = 100


def head(text: str) -> chain.Head:
    """Return the end of the chain in a text such as "120:ab...", or raise ArgumentTypeError."""
    number, _, digest = text.partition(":")
    if not (number.isascii() and number.isdigit() and len(number) < 19 and re.fullmatch("[0-9a-f]{64}", digest)):
        raise ArgumentTypeError(f"must be NUMBER:DIGEST as this command prints it, got {text!r}")
    return chain.Head(int(number), digest)


class Command(BaseCommand):
    help = (
        "Seal the audit entries that are not sealed yet, and compare all of them with the chain of digests. Name each "
        "entry that was changed, deleted or inserted since, and fail if there is one."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--head",
            type=head,
            action="append",
            default=[],
            metavar="NUMBER:DIGEST",
            help="an end of the chain that was noted earlier, which must still be in it; may be repeated",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        # All of them. After an upgrade they are more than a run of the task seals, and the others would look inserted.
        chain.seal(now, sys.maxsize)
        broken = list(islice(chain.verify(now, options["head"]), SHOWN + 1))
        for one in broken[:SHOWN]:
            self.stdout.write(f"BROKEN {one}")
        if broken:
            count = f"More than {SHOWN}" if len(broken) > SHOWN else len(broken)
            raise CommandError(f"{count} of the rows are not as they were sealed.")
        end = chain.head()
        if not end.number:
            self.stdout.write("No audit entry is sealed yet. Entries are sealed ten seconds after they are written.")
            return
        self.stdout.write(f"All sealed entries are as they were sealed. Note the end of the chain elsewhere:\n{end}")
