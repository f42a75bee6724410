from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.people.records import reset_second_factor


class Command(BaseCommand):
    help = "Remove the second factor of a user who has lost the device and the recovery codes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--reason", required=True, help="The audit keeps the reason.")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["username"]).first()
        if user is None:
            raise CommandError(f"username: there is no user {options['username']!r}")
        with change(actor=Actor("reset_second_factor", "command"), reason=options["reason"]) as tx:
            if not reset_second_factor(tx, user):
                raise CommandError(f"username: {user} has no second factor")
        self.stdout.write(f"{user} logs in without a second factor now, and can add a new authenticator.")
