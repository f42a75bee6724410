from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser

from controlplane.web.login.first_link import first_link


class Command(BaseCommand):
    help = "Print a link, which works once and for a day, at which the first account is created in a browser."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("url", help="the address of the server, such as https://limits.example")

    def handle(self, *args: Any, url: str, **options: Any) -> None:
        if not url.startswith(("http://", "https://")):
            raise CommandError(f"url: must begin with http:// or https://, got {url!r}.")
        if User.objects.exists():
            raise CommandError("There is an account already. Further accounts are created in the admin.")
        self.stdout.write(first_link(url))
