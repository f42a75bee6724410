"""The REST resource of memberships, which say who may do what in a project."""

from typing import Any

from django.contrib.auth.models import User
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError

from controlplane.objects.people.models import Membership
from controlplane.objects.people.roles import ROLES
from controlplane.web.restkit.fields import ReferenceField
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import CleanModelSerializer, ListQuery
from controlplane.web.restkit.views import Resource

MEMBERSHIP_ID = "mem_[0-9a-z]{1,36}"


@extend_schema_field({"type": "string", "minLength": 1, "maxLength": 150, "example": "ann"})
class UserField(serializers.Field):
    """
    An account by its name. Operators create accounts in the admin.

    A key that is limited to projects names only their members. It would learn otherwise which accounts there are.
    """

    default_error_messages = {
        "invalid": "Must be a string.",
        "does_not_exist": "There is no account {value!r} that this key may name. An operator creates it in the admin. "
        "A key for single projects names only their members.",
    }

    def to_internal_value(self, data: Any) -> User:
        if not isinstance(data, str):
            self.fail("invalid")
        access = self.context["access"]
        known = User.objects.filter(username=data)
        if not access.all_projects:
            known = known.filter(pk__in=access.within(Membership.objects.all(), "project").values("user"))
        user = known.first()
        if user is None:
            self.fail("does_not_exist", value=data)
        return user

    def to_representation(self, value: User) -> str:
        return value.get_username()


@example(user="ann", project="chat", role="editor")
class MembershipSerializer(CleanModelSerializer[Membership]):
    user = UserField(help_text="The name of the account.")
    project = ReferenceField("projects", help_text="Slug of the project.")

    class Meta:
        model = Membership
        fields = ["id", "user", "project", "role", "created_at"]

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        moved = [name for name in ("user", "project") if self.instance and self._differs(name, attrs)]
        if moved:
            error = [ErrorDetail("Must not be changed. Delete the membership and add another.", code="immutable")]
            raise ValidationError(dict.fromkeys(moved, error))
        return super().validate(attrs)

    def _differs(self, name: str, attrs: dict[str, Any]) -> bool:
        return name in attrs and attrs[name] != getattr(self.instance, name)


class MembershipQuery(ListQuery):
    project = ReferenceField("projects", required=False, help_text="Slug of the project.")
    user = serializers.CharField(required=False, max_length=150, help_text="The name of the account.")
    role = serializers.ChoiceField(ROLES, required=False)


class MembershipView(Resource[Membership]):
    """The roles of accounts in projects. A changed role counts from the next request of the admin on."""

    serializer_class = MembershipSerializer
    lookup_field = "id"
    lookup_value_regex = MEMBERSHIP_ID
    ordering = ("-id",)
    queries = {"list": MembershipQuery}
    scopes = {
        "list": "memberships:read",
        "retrieve": "memberships:read",
        "create": "memberships:write",
        "partial_update": "memberships:write",
        "destroy": "memberships:write",
    }
    FILTERS = {"project": "project", "user": "user__username", "role": "role"}

    def get_queryset(self) -> QuerySet[Membership]:
        chosen = {lookup: self.query[name] for name, lookup in self.FILTERS.items() if name in self.query}
        return self.access.within(Membership.objects.select_related("user", "project").filter(**chosen), "project")
