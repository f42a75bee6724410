"""What numbers for estimates are learned from."""

from django.db import models

from enforcement.metering.samples import MAX_TOOL_LENGTH
from enforcement.metering.tally import MAX_MODEL_LENGTH


class EstimateSample(models.Model):
    """
    The counts of metered requests of one token on one day, from which estimates are learned.

    The fields are those of `enforcement.metering.samples`. ``tool`` is a kind of tool of the provider, or empty. The
    row has plain ids and no foreign keys, because it is kept after the objects are deleted.
    """

    KEY = ("day", "project_id", "token_id", "model", "interface", "tool")

    day = models.DateTimeField()
    project_id = models.CharField(max_length=40)
    token_id = models.CharField(max_length=40, blank=True)
    model = models.CharField(max_length=MAX_MODEL_LENGTH)
    interface = models.CharField(max_length=32)
    tool = models.CharField(max_length=MAX_TOOL_LENGTH, blank=True)
    requests = models.BigIntegerField(default=0)
    uses = models.BigIntegerField(default=0)
    reported = models.BigIntegerField(default=0)
    error = models.BigIntegerField(default=0)
    bytes_bytes = models.BigIntegerField(default=0)
    bytes_objects = models.BigIntegerField(default=0)
    bytes_one = models.BigIntegerField(default=0)
    objects_objects = models.BigIntegerField(default=0)
    objects_one = models.BigIntegerField(default=0)
    one_one = models.BigIntegerField(default=0)
    bytes_tools = models.BigIntegerField(default=0)
    objects_tools = models.BigIntegerField(default=0)
    tools_tools = models.BigIntegerField(default=0)
    tools_any = models.BigIntegerField(default=0)
    bytes_any = models.BigIntegerField(default=0)
    objects_any = models.BigIntegerField(default=0)
    any_any = models.BigIntegerField(default=0)
    bytes_tokens = models.BigIntegerField(default=0)
    objects_tokens = models.BigIntegerField(default=0)
    one_tokens = models.BigIntegerField(default=0)
    tools_tokens = models.BigIntegerField(default=0)
    any_tokens = models.BigIntegerField(default=0)

    class Meta:
        # The app that counts and deletes its rows.
        app_label = "usage"
        constraints = [
            models.UniqueConstraint(
                fields=["day", "project_id", "token_id", "model", "interface", "tool"], name="usage_sample_once_a_key"
            )
        ]

    def __str__(self) -> str:
        return f"{self.day:%Y-%m-%d} {self.model}"
