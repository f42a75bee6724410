"""Rows that count their changes."""

from django.db import models

from controlplane.core.from_files import Managed


class Versioned(Managed):
    """A row that counts its changes. Only change() increases the number."""

    version = models.PositiveIntegerField(default=1, editable=False)

    class Meta:
        abstract = True

    def advance(self) -> None:
        # Added in SQL, because two changes at the same time must not get the same version.
        type(self)._default_manager.filter(pk=self.pk).update(version=models.F("version") + 1)
        self.refresh_from_db(fields=["version"])
