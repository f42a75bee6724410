"""The queries of the lists of projects and tokens over REST, and their searches."""

from rest_framework import serializers

from controlplane.api.fields import LabelQueryField, QueryBooleanField, ReferenceField
from controlplane.api.lists.ordering import OrderField, SearchField
from controlplane.api.serializers import ListQuery
from controlplane.lists.searching import IndexedSearch
from controlplane.projects.models import Project, Token
from enforcement.model.tokens import PREFIX_LENGTH


class ProjectSearch(IndexedSearch):
    model, beginnings, has_few_rows = Project, ("slug", "name"), True


class ProjectQuery(ListQuery):
    policy = ReferenceField("policies", required=False, help_text="Slug of the project's policy.")
    active = QueryBooleanField(required=False)
    search = SearchField("slug or name")
    order = OrderField("slug", "name", "created_at", usual="slug")


class TokenQuery(ListQuery):
    labels = LabelQueryField()
    status = serializers.ChoiceField(
        ["active", "suspended", "revoked", "expired"],
        required=False,
        help_text="Suspended tokens are active too.",
    )

    search = SearchField("the name, the prefix or the id")
    order = OrderField("name", "created_at", usual="-created_at")


class TokenSearch(IndexedSearch):
    model, beginnings, exact_beginnings, wholes = Token, ("name",), ("prefix",), ("id",)


class AnyTokenQuery(TokenQuery):
    project = ReferenceField("projects", required=False, help_text="Slug of the project.")
    policy = ReferenceField("policies", required=False, help_text="Slug of the token's own policy.")
    name = serializers.CharField(required=False, max_length=200, help_text="The whole name.")
    prefix = serializers.CharField(
        required=False, max_length=PREFIX_LENGTH, help_text="The beginning of the secret, as a token shows it."
    )
