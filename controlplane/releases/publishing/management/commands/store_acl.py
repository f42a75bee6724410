import os
import secrets
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, urlsplit

import redis
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from controlplane.changes.change.transaction import Actor, change
from controlplane.core import store
from controlplane.objects.projects.models import Project
from enforcement.model.sizes import MAX_ITEMS_PER_LIST
from enforcement.store.client import STORE_ERRORS
from enforcement.store.topology import Topology
from enforcement.store_calls.acl import ACCOUNTS, Rules, acl_line, enforcer, password_rules

# The store hashes a password once and without salt, so short passwords are quickly found from its ACL file.
SHORTEST_PASSWORD = 16
NO_FILE = "not configured to use an ACL file"


@dataclass(slots=True)
class StoreAccount:
    """
    An account of the store with its rules.

    ``given`` is its password from the environment, and ``made`` is a new password. Both may be empty.
    """

    name: str
    rules: Rules
    given: str
    made: str = ""

    @classmethod
    def of(cls, name: str, rules: Rules) -> Self:
        """Return the account with its password from the environment, or raise CommandError for a short password."""
        variable = f"SLUICEGATE_{name.upper().replace('-', '_')}_PASSWORD"
        given = os.environ.get(variable, "")
        if given and len(given) < SHORTEST_PASSWORD:
            raise CommandError(f"{variable}: must have at least {SHORTEST_PASSWORD} characters, got {len(given)}.")
        return cls(name, rules, given)

    @property
    def password(self) -> str:
        return self.given or self.made

    def make_password(self) -> None:
        self.made = "" if self.given else secrets.token_urlsafe(32)

    def url(self) -> str:
        parts = urlsplit(settings.REDIS_URL)
        login = f"{self.name}:{quote(self.password, safe='')}"
        return parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}").geturl()


class Command(BaseCommand):
    help = (
        "Print the accounts of the store as lines of its ACL file. With --apply, install them over the connection of "
        "SLUICEGATE_REDIS_URL, whose account must have the right to do so. Passwords are read from "
        "SLUICEGATE_<ACCOUNT>_PASSWORD, for example SLUICEGATE_ENFORCER_PASSWORD. An account without one gets a new "
        "password, which is shown once."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--apply", action="store_true", help="install the accounts instead of printing them")
        parser.add_argument("--default-off", action="store_true", help="disable the account 'default'")
        parser.add_argument(
            "--project",
            action="append",
            default=[],
            metavar="SLUG",
            help="also create enforcer-SLUG, an account for proxies that may use the counters of this project only. "
            "The usage that it reports is read from a stream of its own",
        )

        parser.add_argument(
            "--no-global",
            action="store_true",
            help="give the accounts of --project no right on the counters of the global policy. Their proxies refuse "
            "requests under global limits, and can ask `sluicegate serve` instead",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["no_global"] and not options["project"]:
            raise CommandError("--no-global: must be given with --project. Other accounts need all counters.")
        rules = {name: rules(store.keys()) for name, rules in ACCOUNTS.items()}
        rules |= _of_projects(options["project"], with_global=not options["no_global"])
        accounts = [StoreAccount.of(name, its_rules) for name, its_rules in rules.items()]
        if not options["apply"]:
            self._print(accounts, options["default_off"])
            return
        try:
            self._apply(accounts, options["default_off"])
        except redis.exceptions.NoPermissionError as exc:
            raise CommandError(f"The account of SLUICEGATE_REDIS_URL may not manage accounts: {exc}") from exc
        except STORE_ERRORS as exc:
            raise CommandError(f"The store did not accept the accounts: {exc}") from exc

    def _print(self, accounts: Iterable[StoreAccount], default_off: bool) -> None:
        if default_off:
            self.stdout.write("user default off")
            self._warn("None of these accounts can manage the store. Add an account of your own to the file.")
        for account in accounts:
            account.make_password()
            self.stdout.write(acl_line(account.name, account.rules, account.password))
            self._show(account)

    def _apply(self, accounts: Iterable[StoreAccount], default_off: bool) -> None:
        if Topology.parse(settings.REDIS_URL).kind != "single":
            raise CommandError(
                "The store does not replicate accounts. Run this command without --apply, and give the printed file to "
                "every server as its aclfile, replicas included. Nothing was changed."
            )
        client = store.connection()
        if default_off and client.acl_whoami() == "default":
            raise CommandError(
                "SLUICEGATE_REDIS_URL uses the account 'default' itself. Nothing was changed. Create another account "
                "(ACL SETUSER admin on >PASSWORD ~* &* +@all), and use it in SLUICEGATE_REDIS_URL for this command."
            )
        known = client.acl_users()
        for account in accounts:
            self._install(client, account, account.name in known)
        if default_off:
            client.execute_command("ACL SETUSER", "default", "off")
            self.stdout.write("Account default: off.")
        self.stdout.write(_save(client))

    def _install(self, client: redis.Redis, account: StoreAccount, known: bool) -> None:
        # An existing account without a password gets one too, because anybody or nobody could use it.
        present = client.acl_getuser(account.name) if known else None
        if present is None or not present["passwords"]:
            account.make_password()
        password = password_rules(account.password) if account.password else []
        client.execute_command("ACL SETUSER", account.name, "on", *password, *account.rules)
        outcome = "password set" if account.password else "password kept"
        self.stdout.write(f"Account {account.name}: {f'rules replaced, {outcome}' if known else 'created'}.")
        self._show(account)

    def _show(self, account: StoreAccount) -> None:
        if account.made:
            self._warn(f"New password, shown only once: SLUICEGATE_REDIS_URL={account.url()}")

    def _warn(self, text: str) -> None:
        """Write to stderr without colour, so that a file with the printed rules does not contain the passwords."""
        self.stderr.write(text, style_func=str)


def _of_projects(slugs: Iterable[str], *, with_global: bool) -> dict[str, Rules]:
    """Return the rules of the accounts of these projects by name, after the usage of such accounts is read."""
    if not slugs:
        return {}  # before the tables are made, too: the store needs its accounts first
    found = {project.slug: project for project in Project.objects.filter(slug__in=slugs)}
    unknown = sorted(set(slugs) - found.keys())
    if unknown:
        raise CommandError(f"There is no project {', '.join(unknown)}.")
    new = [project for _, project in sorted(found.items()) if not project.has_intake]
    if len(new) + Project.objects.filter(has_intake=True).count() > MAX_ITEMS_PER_LIST:
        raise CommandError(f"--project: at most {MAX_ITEMS_PER_LIST} projects have accounts of their own.")
    if new:
        with change(actor=Actor("store_acl", "command"), reason="its usage is read from an intake") as tx:
            for project in new:
                before, project.has_intake = project.as_record(), True
                project.save(update_fields=["has_intake"])
                tx.updated(project, before)
    return {
        f"enforcer-{slug}": enforcer(store.keys(), [project.pk], with_global=with_global)
        for slug, project in sorted(found.items())
    }


def _save(client: redis.Redis) -> str:
    try:
        client.acl_save()
    except redis.ResponseError as exc:
        if NO_FILE not in str(exc):
            raise
        return "The store has no ACL file (aclfile), so it loses the accounts when it restarts."
    return "Saved to the store's ACL file."
