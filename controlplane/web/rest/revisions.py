"""The undo of one revision over REST, by the rules of the page of the admin."""

from collections.abc import Callable
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.words.change import Change, ObjectChange
from controlplane.changes.words.words import Line, lines_of
from controlplane.objects.policies.names import Names
from controlplane.releases.publishing.models import Revision
from controlplane.releases.revisions.undo import Changed, apply, locked
from controlplane.releases.revisions.undo import plan as plan_of
from controlplane.web.restkit.fields import ReasonField, StringField
from controlplane.web.restkit.problems import Conflict
from controlplane.web.restkit.serializers import StrictSerializer
from controlplane.web.restkit.views import ApiView
from controlplane.web.restkit.writes.trials import Trial, TrialSerializer

CHANGED = "Something was changed after the plan was made. Ask for a new plan with dry_run=true."


class UndoSerializer(StrictSerializer):
    reason = ReasonField()
    plan = StringField(
        required=False,
        max_length=32,
        help_text="The `plan` of a response to dry_run=true. Nothing is undone if that has changed since.",
    )


class LineSerializer(serializers.Serializer):
    part = serializers.CharField(help_text="The limit of a policy. Empty if it is the object itself.")
    text = serializers.CharField(help_text="What happens, if there is no value before and after.")
    field = serializers.CharField(help_text="The field in words. May be empty if the values say it.")
    before = serializers.CharField(source="old", help_text="The present value in words.")
    after = serializers.CharField(source="new", help_text="The value that comes back, in words.")


@extend_schema_field(LineSerializer(many=True))
class LinesField(serializers.Field):
    """
    What becomes of an object, in words. The context has the ``names`` of what its records name by an id.

    Args:
        words: Returns the lines of an object.
    """

    def __init__(self, words: Callable[[ObjectChange, Names], list[Line]] = lines_of, **options: Any) -> None:
        super().__init__(**options)
        self._words = words

    def to_representation(self, value: ObjectChange) -> Any:
        return LineSerializer(self._words(value, self.context["names"]), many=True).data


class StepSerializer(serializers.Serializer):
    type = serializers.CharField(source="kind", help_text="For example policy.")
    id = serializers.CharField(source="pk")
    changes = LinesField(source="*")

    def get_fields(self) -> dict[str, serializers.Field]:
        more = super().get_fields()
        return {"type": more.pop("type"), "id": more.pop("id"), "label": serializers.CharField(), **more}


class UndoneSerializer(serializers.Serializer):
    undone = serializers.IntegerField(help_text="The revision that is undone.")
    revision = serializers.IntegerField(
        allow_null=True, help_text="The new revision. Null if it is pending, or if nothing was changed."
    )
    plan = serializers.CharField(help_text="Names what is done.")
    objects = StepSerializer(many=True, help_text="What is changed back, in this order.")
    stays = serializers.ListField(child=serializers.CharField(), help_text="What stays as it is, in sentences.")


class UndoTrialSerializer(UndoneSerializer, TrialSerializer):
    pass


class UndoView(ApiView):
    """The undo of one revision."""

    serializer_class = UndoSerializer
    trials = {"undo": UndoTrialSerializer}
    scopes = {"undo": "revisions:write"}
    lookup_field = "number"
    conditional = False
    of_all_projects = ("*",)

    def get_queryset(self) -> QuerySet[Revision]:
        return Revision.objects.defer("changes")

    @extend_schema(responses=UndoneSerializer)
    def undo(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Change back what this revision changed, and nothing that was changed since, as a new revision.

        A value that was changed again stays, and so do counters and revoked secrets. `stays` names them. What cannot be
        undone is refused with 409 and the code `cannot_be_undone`.
        """
        body = self.read_body().validated_data
        revision = self.get_object()
        try:
            plan = self._undo(revision, body)
        except Changed as exc:
            raise Conflict(CHANGED, "plan_changed") from exc
        except ValidationError as exc:
            raise Conflict(f"Nothing was changed. {' '.join(exc.messages)}", "cannot_be_undone") from exc
        new = self.tx.revision if self.tx else None
        done = {"undone": revision.number, "revision": new, "plan": plan.digest}
        answer = {**done, "objects": plan.objects, "stays": plan.stays}
        return Response(UndoneSerializer(answer, context={"names": Names.of_change(plan)}).data)

    def _undo(self, revision: Revision, body: dict[str, Any]) -> Change:
        """Undo a revision, and return what was done."""
        with self.change(body["reason"]) as tx:
            plan = plan_of(locked(AuditEntry.objects.all(), revision))
            apply(tx, plan, revision, body.get("plan", plan.digest))
        return plan

    def review(self, tried: Trial) -> dict[str, Any]:
        return tried.result
