"""Serializers of bodies and queries, which refuse unknown fields and apply the rules of the models."""

import re
from collections.abc import Mapping
from copy import copy
from typing import Any

from django.core.exceptions import ValidationError as InvalidModel
from django.db import models
from django.http import QueryDict
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError

from controlplane.web.restkit import fields
from controlplane.web.restkit.deprecation import Deprecation, noted
from controlplane.web.restkit.problems import InvalidQuery, model_errors
from enforcement.model.matching import is_label
from enforcement.model.spelling import closest

_INTEGER = re.compile("-?[0-9]+")
# Unknown fields of one object that a response names. Each takes time, and a body has room for 100,000.
MOST_UNKNOWN = 100


def unknown_field(name: str, known: list[str]) -> list[ErrorDetail]:
    """Return a list of one error, for an unknown field, with the closest known name or all of them."""
    close = closest(name, known)
    others = f"Must be one of: {', '.join(known)}." if known else "There are no fields here."
    hint = f'Did you mean "{close[0]}"?' if close else others
    return [ErrorDetail(f"Unknown field. {hint}", code="unknown_field")]


class StrictSerializer(serializers.Serializer):
    """
    A serializer that refuses unknown fields, and read-only fields with a changed value.

    ``deprecated`` has the fields that will be removed. The response to a request that uses one says so.
    """

    deprecated: Mapping[str, Deprecation] = {}

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        errors = self._surplus(data) if isinstance(data, Mapping) else {}
        used = self.deprecated.keys() & (data if isinstance(data, Mapping) else ())
        for name in used if "request" in self.context else ():  # a job has no response that could say so
            noted(self.context["request"]).append(self.deprecated[name])
        try:
            value = super().to_internal_value(data)
        except ValidationError as exc:
            if not isinstance(exc.detail, dict):
                raise
            found = {name: _with_choices(detail, self.fields.get(name)) for name, detail in exc.detail.items()}
            raise ValidationError({**found, **errors}) from exc
        if errors:
            raise ValidationError(errors)
        return value

    def check_names(self, data: Mapping[str, Any]) -> None:
        """Raise ValidationError for each unknown field, whatever the values of the others are."""
        if errors := self._surplus(data):
            raise ValidationError(errors)

    def _surplus(self, data: Mapping[str, Any]) -> dict[str, list[ErrorDetail]]:
        writable = [name for name, field in self.fields.items() if not field.read_only]
        errors: dict[str, list[ErrorDetail]] = {}
        for name in data:
            if name in writable:
                continue
            if len(errors) == MOST_UNKNOWN:
                break
            if name not in self.fields:
                errors[name] = unknown_field(name, writable)
            elif not self._is_unchanged(name, data[name]):
                errors[name] = [ErrorDetail("Must not be changed, because the server sets it.", code="read_only")]
        return errors

    def _is_unchanged(self, name: str, value: Any) -> bool:
        """Return whether a read-only field has its present value, as in an object that was read and sent back."""
        return isinstance(self.instance, models.Model) and self.to_representation(self.instance)[name] == value


def _with_choices(detail: Any, field: Any) -> Any:
    """Return the errors of a field, of which those about a choice also name the choices."""
    if isinstance(detail, dict):  # of the members of a list
        return {key: _with_choices(value, getattr(field, "child", None)) for key, value in detail.items()}
    choices = ", ".join(map(str, getattr(field, "choices", ())))
    return [
        ErrorDetail(f"{error} Must be one of: {choices}.", error.code)
        if choices and getattr(error, "code", "") == "invalid_choice"
        else error
        for error in detail
    ]


class QuerySerializer(StrictSerializer):
    """The query of a request. Each parameter is a field and may occur once."""

    @classmethod
    def read(cls, query: QueryDict, context: dict[str, Any]) -> dict[str, Any]:
        """
        Return the parameters of a query by name, with defaults, or raise InvalidQuery.

        Raises:
            InvalidQuery: A parameter is unknown, repeated or wrong.
        """
        errors = {name: found for name, values in query.lists() if (found := _errors_of(values))}
        if errors:
            raise InvalidQuery(errors)
        parameters: dict[str, Any] = query.dict()
        if "labels" in cls._declared_fields:
            labels = {name: parameters.pop(name) for name in list(parameters) if is_label(name)}
            parameters |= {"labels": labels} if labels else {}
        serializer = cls(data=parameters, context=context)
        serializer.is_valid()
        if errors := {**serializer.errors, **serializer.loose_numbers(parameters)}:
            of_labels: dict[str, list[ErrorDetail]] | list[ErrorDetail] = errors.pop("labels", {})
            raise InvalidQuery(errors | (of_labels if isinstance(of_labels, dict) else {"labels": of_labels}))
        return serializer.validated_data

    def loose_numbers(self, parameters: Mapping[str, Any]) -> dict[str, list[ErrorDetail]]:
        """Return an error for each number that Python reads and others do not, such as 1_0 and 1.0."""
        numbers = [name for name, field in self.fields.items() if isinstance(field, serializers.IntegerField)]
        wrong = [name for name in numbers if not _INTEGER.fullmatch(parameters.get(name, "0"))]
        return {name: [ErrorDetail("Must be an integer, in digits only.", code="invalid")] for name in wrong}


def _errors_of(values: list[str]) -> list[ErrorDetail]:
    """Return the errors of a parameter's values that do not depend on its name."""
    if len(values) > 1:
        return [ErrorDetail("Must occur at most once.", code="repeated")]
    if "\0" in values[0]:  # PostgreSQL cannot compare it with anything, as the parser of bodies knows too
        return [ErrorDetail("Must not contain NUL.", code="null_characters_not_allowed")]
    return []


class NoQuery(QuerySerializer):
    pass


class ListQuery(QuerySerializer):
    page_size = serializers.IntegerField(min_value=1, max_value=200, default=50, help_text="Results in a page.")
    cursor = serializers.CharField(
        required=False,
        max_length=1000,
        help_text="The start of the page, taken from `next` or `previous` of another page.",
    )


class OwnProject(serializers.Serializer):
    """A mixin for a serializer whose field ``project`` says to whom the row belongs. A limited key must own it."""

    def validate_project(self, project: models.Model | None) -> models.Model | None:
        if not self.context["access"].owns(project and project.pk):
            message = "Must be one of the projects to which this key is limited."
            raise ValidationError([ErrorDetail(message, code="key_limited_to_projects")])
        return project


class NoBody(StrictSerializer):
    pass


class CleanModelSerializer[M: models.Model](StrictSerializer, serializers.ModelSerializer[M]):
    """A serializer that validates with the model's full_clean(), as the forms of the admin do."""

    serializer_field_mapping = {
        **serializers.ModelSerializer.serializer_field_mapping,
        models.CharField: fields.StringField,
        models.TextField: fields.StringField,
        models.BooleanField: fields.StrictBooleanField,
        models.BigIntegerField: fields.StrictIntegerField,
        models.PositiveIntegerField: fields.StrictIntegerField,
        models.DateTimeField: fields.InstantField,
    }
    # Fields of the model that the view sets, and no client.
    clean_exclude: tuple[str, ...] = ()
    # Other arguments of full_clean().
    clean_options: Mapping[str, bool] = {}

    @classmethod
    def model_class(cls) -> type[M]:
        model: type[M] = cls.Meta.model
        return model

    def build_standard_field(self, field_name: str, model_field: models.Field) -> tuple[type, dict[str, Any]]:
        """
        Return the class and the options of a field, without checks of uniqueness and bounds, which the model makes.
        """
        field_class, options = super().build_standard_field(field_name, model_field)
        if issubclass(field_class, fields.StrictIntegerField):
            options = {name: value for name, value in options.items() if name not in ("min_value", "max_value")}
        validators = options.get("validators", [])
        options["validators"] = [validator for validator in validators if not hasattr(validator, "queryset")]
        if not options["validators"]:
            del options["validators"]
        return field_class, options

    def get_validators(self) -> list[Any]:
        return []

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        candidate = self.candidate(attrs)
        try:
            candidate.full_clean(exclude=self.clean_exclude, **self.clean_options)
        except InvalidModel as exc:
            raise ValidationError(self._by_name(model_errors(exc))) from exc
        return attrs

    def _by_name(self, errors: dict[str, list[ErrorDetail]]) -> dict[str, list[ErrorDetail]]:
        """Return errors of columns under the names that clients know, which differ from those of some columns."""
        names = {field.source: name for name, field in self.fields.items()}
        return {names.get(column, column): found for column, found in errors.items()}

    def candidate(self, attrs: dict[str, Any]) -> M:
        """Return a copy of the row, or a new row, with the values of *attrs*, without saving it."""
        candidate = copy(self.instance) if self.instance else self.model_class()()
        for name, value in attrs.items():
            setattr(candidate, name, value)
        return candidate
