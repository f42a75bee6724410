from django.db import models


class RecordedMinute(models.Model):
    """
    The requests of one token in one minute, until they are folded into the row of their day.

    The columns ``part_0`` to ``part_5`` have the requests of each ten seconds, and ``seconds`` a bit for each active
    second. Requests that are missing in the parts came at an unknown second. The row has plain ids and no foreign
    keys, because it is kept after the objects are deleted.
    """

    KEY = ("project_id", "token_id", "at")
    PARTS = tuple(f"part_{number}" for number in range(6))
    COUNTS = ("allowed", "denied", "cost", "seconds", *PARTS)

    project_id = models.CharField(max_length=40)
    token_id = models.CharField(max_length=40, blank=True)
    at = models.DateTimeField(db_index=True)
    allowed = models.BigIntegerField(default=0)
    denied = models.BigIntegerField(default=0)
    cost = models.BigIntegerField(default=0)
    seconds = models.BigIntegerField(default=0)
    part_0 = models.BigIntegerField(default=0)
    part_1 = models.BigIntegerField(default=0)
    part_2 = models.BigIntegerField(default=0)
    part_3 = models.BigIntegerField(default=0)
    part_4 = models.BigIntegerField(default=0)
    part_5 = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project_id", "token_id", "at"], name="preview_minute_once_a_token")
        ]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {self.token_id or self.project_id}"


class RecordedDay(models.Model):
    """
    The requests of one token on one day in UTC. ``controlplane.traffic.callers.chunks`` reads and writes the bytes.

    ``hours`` says how many requests each hour had, and the most that any short span of it had. So most tokens, whose
    requests no limit would deny, are known without their ``body``, which has every minute.
    """

    project_id = models.CharField(max_length=40)
    token_id = models.CharField(max_length=40, blank=True)
    day = models.DateField(db_index=True)
    requests = models.BigIntegerField(default=0)
    allowed = models.BigIntegerField(default=0)
    cost = models.BigIntegerField(default=0)
    # Requests of which only the minute is known.
    coarse = models.BigIntegerField(default=0)
    hours = models.BinaryField(default=bytes)
    body = models.BinaryField(default=bytes)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["token_id", "project_id", "day"], name="preview_day_once_a_token")
        ]
        indexes = [models.Index(fields=["project_id", "day"], name="preview_day_of_project")]

    def __str__(self) -> str:
        return f"{self.day} {self.token_id or self.project_id}"
