"""The chain of digests over the entries of the audit."""

from django.db import models


class AuditSeal(models.Model):
    """
    The place of an audit entry in the chain, with a digest of the entry and of the digest before it.

    It is a row of its own, so that an entry never changes after it was written.
    """

    number = models.BigIntegerField(primary_key=True)
    entry_id = models.CharField(max_length=40, unique=True)
    digest = models.CharField(max_length=64)

    class Meta:
        ordering = ["number"]
        # Only the chain itself makes and deletes seals.
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"
