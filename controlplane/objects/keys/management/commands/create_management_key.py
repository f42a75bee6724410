from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from controlplane.changes.change.transaction import Actor, change
from controlplane.changes.words.describe import seconds_of
from controlplane.objects.keys.actions import issue_management_key
from controlplane.objects.projects.models import Project


class Command(BaseCommand):
    help = "Create a management key for the REST API and print it. It is shown once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", required=True, help="the program that will use the key")
        parser.add_argument(
            "--scopes", required=True, help="scopes with commas between them, for example projects:read,tokens:write"
        )
        reach = parser.add_mutually_exclusive_group(required=True)
        reach.add_argument("--projects", help="slugs of the projects for which the key works, with commas between them")
        reach.add_argument("--all-projects", action="store_true", help="let the key work for every project")
        parser.add_argument(
            "--networks",
            help="from where the key may be used, for example 192.0.2.0/24,2001:db8::/32; if left out, from everywhere",
        )
        parser.add_argument(
            "--expires",
            help='when the key ends, as a duration such as "90 days" or a time such as 2027-12-31T00:00:00Z; '
            "if left out, never",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        reach = {"all_projects": options["all_projects"], "projects": _projects(_names(options["projects"] or ""))}
        fields = {"name": options["name"], "scopes": _names(options["scopes"]), "expires_at": _end(options["expires"])}
        fields["networks"] = None if options["networks"] is None else _names(options["networks"])
        try:
            with change(actor=Actor("create_management_key", "command")) as tx:
                _, secret = issue_management_key(tx, **fields, **reach)
        except ValidationError as exc:
            errors = (f"{name}: {text}" for name, texts in exc.message_dict.items() for text in texts)
            raise CommandError("; ".join(errors)) from exc
        self.stdout.write(secret)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _projects(slugs: list[str]) -> list[Project]:
    found = {project.slug: project for project in Project.objects.filter(slug__in=slugs)}
    if unknown := [slug for slug in slugs if slug not in found]:
        raise CommandError(f"projects: There is no project {', '.join(map(repr, unknown))}.")
    return list(found.values())


def _end(text: str | None) -> datetime | None:
    """Return the instant that *text* names, as a duration from now or as a time with an offset, or None for None."""
    if text is None:
        return None
    try:
        end = parse_datetime(text) or timezone.now() + timedelta(seconds=seconds_of(text))
    except (ValueError, OverflowError):
        end = None
    if end is None or end.tzinfo is None:
        message = 'Must be a duration such as "90 days" or a time with an offset such as 2027-12-31T00:00:00Z'
        raise CommandError(f"expires: {message}, got {text!r}.")
    return end.astimezone(UTC)
