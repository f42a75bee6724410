from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from controlplane.core.tables import indexing


class Command(BaseCommand):
    help = "Create the indexes of searches in the admin anew, for example after the extension pg_trgm was created."

    def handle(self, *args: Any, **options: Any) -> None:
        if connection.vendor != "postgresql":
            raise CommandError("Only PostgreSQL has indexes for searches. SQLite reads all rows.")
        with connection.schema_editor(atomic=False) as editor:
            for searched in (indexing.TOKENS, indexing.AUDIT):
                finds = "parts" if searched.create(editor) else "beginnings"
                self.stdout.write(f"{searched.table}: a search finds {finds}.")
