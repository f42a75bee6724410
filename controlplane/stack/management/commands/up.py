import asyncio
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from controlplane.stack import embedded
from controlplane.stack.locks import StackError
from controlplane.stack.supervisor import Service, Supervisor, serve
from controlplane.web.login.first_link import first_link
from enforcement.doctor.endpoint import shown
from enforcement.embedded import ServerError


def has_account() -> bool:
    """Return whether anybody can sign in. The connection, which belongs to a thread that ends, is closed."""
    try:
        return User.objects.exists()
    finally:
        connection.close()


class Command(BaseCommand):
    help = "Run the whole platform on this machine until Ctrl-C, with a store, the control plane and three proxies."
    # The processes check their own settings. Those of this process lack the values that it is about to choose.
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        supervisor = Supervisor(self.describe, settings.VAR_DIR / "run", self.show)
        try:
            embedded.keep_private(settings.VAR_DIR)
            asyncio.run(serve(supervisor, self.announce))
        except (StackError, ServerError) as exc:
            raise CommandError(str(exc)) from exc
        except PermissionError as exc:
            raise CommandError(f"{exc.filename} belongs to another user.") from exc

    def describe(self) -> tuple[Service, ...]:
        self.stack = embedded.build(settings.BASE_DIR, settings.VAR_DIR, os.environ)
        embedded.remember(self.stack, settings.VAR_DIR)
        return self.stack.services

    def show(self, name: str, line: str) -> None:
        self.tell(f"{name:<9} {line}")

    def tell(self, text: str) -> None:
        try:
            self.stdout.write(text)
            self.stdout.flush()  # so that a reader of a file or a pipe sees each line at once
        except BrokenPipeError:  # the reader has gone, as in `make up | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            signal.raise_signal(signal.SIGTERM)  # stops the services in order, as Ctrl-C does

    def first_account(self) -> str:
        """Return the one-time link for the first account, or a sentence if there is an account."""
        with ThreadPoolExecutor(1) as pool:  # Django refuses queries in a thread with an event loop
            has_accounts = pool.submit(has_account).result()
        if has_accounts:
            return f"exists, sign in at {self.stack.web_url}/admin/"
        return f"{first_link(self.stack.web_url, self.stack.environment['SECRET_KEY'])}  (works once, for a day)"

    def announce(self) -> None:
        stack = self.stack
        database = "SQLite" if connection.vendor == "sqlite" else "the database in DATABASE_URL"
        manage = embedded.management_command()
        self.tell(
            self.style.SUCCESS(
                f"\nSluicegate is up, on {database}.\n"
                f"  Admin and REST  {stack.web_url}/admin/  {stack.web_url}/api/v1/\n"
                f"  Store           {shown(stack.redis_url)}  (with its password: {manage} env)\n"
                f"  Proxies         {'  '.join(stack.proxy_urls)}  (to {stack.upstream_url})\n"
                f"  First account   {self.first_account()}\n"
                f"  Stop            Ctrl-C\n"
            )
        )
