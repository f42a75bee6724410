from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from controlplane.projects.actions import issue_management_key
from controlplane.publishing.changes import Actor, change


class Command(BaseCommand):
    help = "Create a management key for the REST API and print it. It is shown once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", required=True, help="the program that will use the key")
        parser.add_argument(
            "--scopes", required=True, help="scopes with commas between them, for example projects:read,tokens:write"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        scopes = [scope.strip() for scope in options["scopes"].split(",") if scope.strip()]
        try:
            with change(actor=Actor("create_management_key", "command")) as tx:
                _, secret = issue_management_key(tx, name=options["name"], scopes=scopes)
        except ValidationError as exc:
            raise CommandError("; ".join(exc.messages)) from exc
        self.stdout.write(secret)
