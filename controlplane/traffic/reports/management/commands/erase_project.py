from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.core.text import PRINTABLE
from controlplane.objects.projects.models import Project
from controlplane.traffic.reports import erasing


class Command(BaseCommand):
    help = (
        "Delete all usage, statements, recordings and reservations of a project that was deleted. The audit records "
        "how many rows they were, and why."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("project", help="the id of the deleted project, as the audit has it (proj_...)")
        parser.add_argument("--reason", required=True, help="the reason, which the audit keeps")

    def handle(self, *args: Any, **options: Any) -> None:
        project_id, reason = options["project"], options["reason"].strip()
        if not 1 <= len(reason) <= 500:
            raise CommandError(f"--reason: must have 1 to 500 characters, got {len(reason)}.")
        try:
            PRINTABLE(reason)
        except ValidationError as exc:
            raise CommandError(f"--reason: {' '.join(exc.messages)}") from exc
        if Project.objects.filter(pk=project_id).exists():
            raise CommandError(f"project: {project_id} still exists. Delete it first, in the admin or over REST.")
        deletion = AuditEntry.objects.filter(action="project.delete", object_id=project_id).first()
        if deletion is None:
            raise CommandError(f"project: the audit has no deletion of a project with the id {project_id!r}.")
        deleted, left = erasing.erase(project_id)
        with change(actor=Actor("erase_project", "command"), reason=reason) as tx:
            erasing.note(tx, erasing.ErasedProject(project_id, deletion.object_label), deleted)
        total = sum(deleted.values())
        self.stdout.write(f"{total:,} rows deleted." if total else "There were no rows. Nothing was deleted.")
        if left:
            raise CommandError(f"{' '.join(left)} Repeat the command.")
