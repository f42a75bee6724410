"""The mark of a row that is managed from files."""

from django.db import models

from controlplane.core.records import RecordedModel
from controlplane.core.text import PRINTABLE


class Managed(RecordedModel):
    """A row that may be managed from files. A change by hand then lasts only until its file is applied again."""

    managed_by = models.CharField(
        max_length=200,
        blank=True,
        default="",
        db_default="",
        validators=[PRINTABLE],
        editable=False,
        help_text="Where its file is, if it is managed from files. Empty if it is not.",
    )

    class Meta:
        abstract = True
