"""The OpenAPI document, built from the views with every error that they may return."""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from django.db.models import Model
from drf_spectacular.drainage import get_override
from drf_spectacular.openapi import AutoSchema as Base
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.utils import Direction, OpenApiExample, OpenApiParameter, extend_schema_serializer
from rest_framework.serializers import Serializer

from controlplane.web.restkit.batches.views import ADDRESS
from controlplane.web.restkit.idempotency.models import MAX_NAME
from controlplane.web.restkit.limit_schema import LIMIT
from controlplane.web.restkit.limit_schema import NAME as LIMIT_NAME
from controlplane.web.restkit.operations import description_of, summary_of
from controlplane.web.restkit.problems import MEDIA_TYPE
from controlplane.web.restkit.requests import KEY_HEADER, MAX_REASON, REASON_HEADER
from controlplane.web.restkit.serializers import StrictSerializer
from controlplane.web.restkit.views import WRITES, ApiView
from controlplane.web.restkit.writes.conditions import TAGS, compares_versions
from controlplane.web.restkit.writes.trials import TrialSerializer
from controlplane.web.restkit.writes.waiting import HEADER

DESCRIPTION = """
Manage projects, tokens and rate limits of a fleet of proxies.

- Send `Authorization: Bearer sg_mgmt_...` with every request. Each operation names the scope that the key needs.
- Every error is `application/problem+json` (RFC 9457) with a stable `code`. `errors` names each wrong field,
  and [`type`](/docs/problems/) leads to a page that says what to do.
- Unknown fields and parameters are refused. No value is converted, so `"1"` is not a number.
- Some lists have `order` and `search`.
- Lists have pages. Follow `next`, or the header `Link`, or send `next_cursor` as `cursor`.
- Single objects have an `ETag`. Send it as `If-Match`, and a change that would overwrite another one fails with 412.
  A condition of a change that could not be checked, as of a batch, is refused with 400.
- The response to a change has the header `Sluicegate-Revision`, with the number of its publication, or `pending`.
- What may be a mistake in a policy, and is no error, is told in `Sluicegate-Warning`, and in `warnings` of a dry run
  and of a batch.
- With `dry_run=true`, a change is checked and nothing is written. The response says what it would do.
- Send an `Idempotency-Key` with a change, and its repetitions get the first response for 24 hours, with
  `Idempotency-Replayed: true` and without secrets. The key with another request is refused with 422.
- `RateLimit-Policy` says how many requests a key may send, and `RateLimit` how many are left. Beyond that, the answer
  is 429, with `Retry-After`. Requests without a valid key are limited for each address.
- A request that is no valid HTTP is refused with 400 by the HTTP server, without a problem document.
- `openapi-typescript` makes fields with a default required, unless you call it with `--default-non-nullable=false`.
"""

PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "instance", "request_id"],
    "properties": {
        "type": {
            "type": "string",
            "format": "uri-reference",
            "description": "The address of a page that explains it, at this server.",
            "example": "/docs/problems/validation_error",
        },
        "title": {"type": "string", "description": "What happened, the same for every problem of the type."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string", "description": "The kind of error, for programs. Codes do not change."},
        "detail": {"type": "string", "description": "What is wrong, for people."},
        "instance": {"type": "string", "description": "The path of the request."},
        "request_id": {"type": "string", "description": "The id of the request in the logs and in the audit."},
        "errors": {
            "type": "array",
            "description": "Each field or query parameter that is wrong.",
            "items": {
                "type": "object",
                "required": ["code", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer into the body.", "example": "#/name"},
                    "parameter": {"type": "string", "description": "Name of the query parameter."},
                    "code": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


def example(**body: Any) -> Callable[[type], type]:
    """Return a class decorator that gives a serializer this example, in place of one generated from every field."""
    return extend_schema_serializer(examples=[OpenApiExample("Example", body, request_only=True)])


JSON = "application/json"


def _header(name: str, description: str, statuses: list[int] | bool = False) -> OpenApiParameter:
    return OpenApiParameter(
        name, str, OpenApiParameter.HEADER, required=False, description=description, response=statuses
    )


IF_MATCH = _header("If-Match", "The ETag that you read. The change is made only if it is still valid.")
IF_NONE_MATCH = OpenApiParameter(
    "If-None-Match",
    {"type": "string", "pattern": TAGS},
    OpenApiParameter.HEADER,
    description="With `*`, the object is created only if it is not there.",
)
REASON = OpenApiParameter(
    REASON_HEADER,
    {"type": "string", "maxLength": MAX_REASON, "pattern": "^[ -~\u00a1-\u00ac\u00ae-\u00ff]*$"},
    OpenApiParameter.HEADER,
    # The pattern is that of the characters which every client can put into a header. Those of UTF-8 are more.
    description="The reason, in UTF-8, which the audit keeps.",
)
REVISION = _header("Sluicegate-Revision", "The revision that contains the change, or `pending`.", [200, 201, 202, 204])
WARNED = _header("Sluicegate-Warning", "What may be a mistake in the object, in words, and is no error.", [200, 201])
WARNING_ACTIONS = ("retrieve", "create", "update", "partial_update", ADDRESS)
IDEMPOTENCY_KEY = OpenApiParameter(
    KEY_HEADER,
    {"type": "string", "minLength": 1, "maxLength": MAX_NAME, "pattern": "^[!#-~]+$"},
    OpenApiParameter.HEADER,
    description="A text of your choice, new for each change. Repetitions with it do not make the change again.",
)
REPLAYED = _header("Idempotency-Replayed", "`true` if an earlier request made the change.", [200, 201, 202, 204])
WAITED = _header(
    HEADER,
    "With `wait`, `true` if there are live instances and all run the revision with the change, else `false`, and the "
    "numbers of all `instances` and of those `behind`. A key that is limited to projects gets no numbers.",
    [200, 201, 202, 204],
)
ETAG = _header("ETag", "The value for If-Match.", [200, 201])
LINK = _header("Link", "The addresses of the next and the previous page (RFC 8288).", [200])
LOCATION = _header("Location", "The address of the new object, or of the job.", [201, 202])
JOB_LOCATION = _header("Location", "The address of the job.", [202])
JOB_RETRY = _header("Retry-After", "Seconds until it is worthwhile to read the job.", [202])
# Links that follow a response with a job.
JOB_LINKS = {
    action: {"operationId": f"jobs_{action}", "parameters": {"id": "$response.body#/id"}}
    for action in ("retrieve", "destroy")
}


def _of_responses(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {name: {"description": description, "schema": {"type": "string", **schema}}}


# drf-spectacular adds this to a pattern, so that an empty string is allowed too.
EMPTY = {"type": "string", "maxLength": 0}

# Headers of every response that a view makes, and of single statuses.
HEADERS = {
    **_of_responses("X-Request-Id", "The id of the request in the log and the audit. Yours, if you sent a valid one."),
    **_of_responses("Cache-Control", "No response may be stored.", const="no-store"),
}
ERROR_HEADERS = {
    "401": _of_responses("WWW-Authenticate", "The scheme Bearer, with the reason if a key was sent."),
    "405": _of_responses("Allow", "The methods of this address."),
    "429": {
        **_of_responses("Retry-After", "Seconds until a new attempt is worthwhile."),
        **_of_responses("RateLimit-Policy", "The limit, as in draft-ietf-httpapi-ratelimit-headers."),
        **_of_responses("RateLimit", "What is left of it."),
    },
    "503": _of_responses("Retry-After", "Seconds until a new attempt is worthwhile."),
}
# Responses of the HTTP server before a view sees the request.
SERVER_ERRORS = {
    "414": "The request line has more than 8190 bytes. The HTTP server answers, without a problem document.",
    "431": "The header fields are too long or too many. The HTTP server answers, without a problem document.",
}


@lru_cache
def _without_name(kind: type[Any], name: str) -> type[Any]:
    """Return a subclass of a serializer, for bodies that may leave out the field whose value is in the address."""
    optional = {"required": False, "help_text": "If it is sent, it must be that of the address."}
    meta = type("Meta", (kind.Meta,), {"extra_kwargs": {**kind.Meta.extra_kwargs, name: optional}})
    result = type(f"{kind.__name__.removesuffix('Serializer')}ReplacementSerializer", (kind,), {"Meta": meta})
    for shown in get_override(kind, "examples", []):
        result = example(**{field: value for field, value in shown.value.items() if field != name})(result)
    return result


class AutoSchema(Base):
    @property
    def api(self) -> ApiView[Model]:
        """The view, which has the base class of all views of the API."""
        if not isinstance(self.view, ApiView):
            raise TypeError(f"{type(self.view).__name__} is no view of the API.")
        return self.view

    def get_operation(self, *args: Any) -> dict[str, Any] | None:
        registry = args[-1]
        for name, schema in (("Problem", PROBLEM), (LIMIT_NAME, LIMIT)):
            # A copy, because later steps move enumerations out of it.
            registry.register_on_missing(ResolvedComponent(name, ResolvedComponent.SCHEMA, deepcopy(schema), name))
        return super().get_operation(*args)

    def get_operation_id(self) -> str:
        name = super().get_operation_id()
        if self.api.action == "export":
            return name.removesuffix("_retrieve")
        return name.removesuffix("_create") if self._is_verb() else name

    def get_tags(self) -> list[str]:
        return ["tokens"] if self.path.endswith("/tokens") else super().get_tags()

    def is_deprecated(self) -> bool:
        return self.api.action in self.api.deprecated

    def get_summary(self) -> str:
        return summary_of(self.get_operation_id(), self.get_tags()[0], self.api.action)

    def get_description(self, *_: str) -> str:
        """Return a text that says what the operation does, what the resource is, and which scope is needed."""
        own = description_of(self.get_operation_id(), self.get_tags()[0], self.api.action)
        needed = self.api.required_scope()
        scope = f"Scope: `{needed}`." if needed else ""
        return "\n\n".join(filter(None, [own, super().get_description(), scope]))

    def get_override_parameters(self) -> list[Any]:
        query = self.api.query_class()()
        parameters: list[Any] = [query] if query.fields else []
        if self.api.is_change():
            parameters += [REASON, REVISION, WAITED]
        if hasattr(self.api, "warned") and self.api.action in WARNING_ACTIONS:
            parameters.append(WARNED)
        if self._is_repeatable():
            parameters += [IDEMPOTENCY_KEY, REPLAYED]
        if self._is_conditional():
            parameters.append(IF_MATCH)
        if self._creates_by_put():
            parameters.append(IF_NONE_MATCH)
        if self._has_etag() and self.method != "DELETE":
            parameters.append(ETAG)
        if self.api.action == "list":
            parameters.append(LINK)
        if self.api.action == ADDRESS:
            parameters += [JOB_LOCATION, JOB_RETRY] if 202 in self._codes() else []
        elif self._creates():
            parameters.append(LOCATION)
        return parameters

    def _postprocess_serializer_schema(self, schema: dict[str, Any], serializer: Any, direction: str) -> dict[str, Any]:
        schema = super()._postprocess_serializer_schema(schema, serializer, direction)
        if type(serializer).__doc__ is None:
            schema.pop("description", None)  # it comes from the base class and describes the code
        if direction == "request" and isinstance(serializer, StrictSerializer):
            schema["additionalProperties"] = False
        for name, shown in schema.get("properties", {}).items():
            if name in getattr(serializer, "deprecated", ()):
                shown["deprecated"] = True
            if shown.get("oneOf", [])[1:] == [EMPTY] and re.search(shown["oneOf"][0].get("pattern", "^$"), ""):
                schema["properties"][name] = shown["oneOf"][0]  # an empty string would match both
        if direction == "response" and "properties" in schema:
            schema["required"] = sorted(schema["properties"])  # a response contains every field
        return schema

    def _get_response_bodies(self, direction: Direction = "response") -> dict[str, Any]:
        bodies = super()._get_response_bodies(direction)
        if self._creates_one():
            bodies["201"]["links"] = self._links()
        if self.api.action == ADDRESS and "202" in bodies:
            bodies["202"]["links"] = deepcopy(JOB_LINKS)
        if self.api.is_change():
            self._add_trial(bodies)
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        if "204" in bodies:
            bodies["204"]["headers"] = self._get_response_headers_for_code("204", direction)
        for status, body in bodies.items():
            body["description"] = body["description"] or HTTPStatus(int(status)).phrase
        for error in map(HTTPStatus, sorted(self._errors())):
            bodies[str(error.value)] = {"description": error.phrase, "content": content}
        for status, body in bodies.items():
            body["headers"] = {**body.get("headers", {}), **HEADERS, **ERROR_HEADERS.get(status, {})}
        for status, description in SERVER_ERRORS.items():
            bodies[status] = {"description": description, "content": {"text/html": {"schema": {"type": "string"}}}}
        return dict(sorted(bodies.items()))

    def _add_trial(self, bodies: dict[str, Any]) -> None:
        """Add the response to a dry run, whose status is 200 whatever that of the change is."""
        usual: type[TrialSerializer] = TrialSerializer
        kinds = dict.fromkeys([self.api.trials.get(self.api.action, usual), usual])
        schemas = [self.resolve_serializer(kind, "response").ref for kind in kinds]
        if "200" in bodies:
            schemas.insert(0, bodies["200"]["content"][JSON]["schema"])
        else:
            bodies["200"] = {"description": "The response with dry_run=true."}
        bodies["200"]["content"] = {JSON: {"schema": {"anyOf": schemas} if schemas[1:] else schemas[0]}}

    def _errors(self) -> Iterator[int]:
        yield from (400, 401, 403, 405, 406, 429, 500, 503)
        if "{" in self.path or self.api.holder_in_query:
            yield 404
        if self._is_repeatable():
            yield from (409, 422)
        if self.method in WRITES:
            yield from (411, 413, 415)
        if self._is_conditional():
            yield 412

    def _is_repeatable(self) -> bool:
        return self.method in WRITES and (not self.api.read_only or self.api.starts_jobs)

    def _has_etag(self) -> bool:
        single = ("create", "retrieve", "update", "partial_update", "destroy")
        return self.api.conditional and self.api.action in single

    def _is_conditional(self) -> bool:
        return self.method in WRITES and compares_versions(self.api)

    def _is_verb(self) -> bool:
        return self.method == "POST" and self.api.action != "create"

    def _creates(self) -> bool:
        return not {"201", "202"}.isdisjoint(map(str, self._codes()))

    def _creates_by_put(self) -> bool:
        return self.method == "PUT" and self.api.creates_by_put

    def get_request_serializer(self) -> Any:
        found = super().get_request_serializer()
        if self._creates_by_put() and isinstance(found, Serializer):
            return _without_name(type(found), self.api.lookup_field)()
        return found

    def get_response_serializers(self) -> Any:
        found = super().get_response_serializers()
        return {200: found, 201: found} if self._creates_by_put() else found

    def _creates_one(self) -> bool:
        return self._creates_by_put() or self.api.action == "create"

    def _links(self) -> dict[str, Any]:
        """Return the operations of a new object, by their actions (OpenAPI 3.1, link object)."""
        view = self.api.view_of_one or type(self.api)
        name, resource = view.lookup_field, self.get_tags()[0].replace("-", "_")
        return {
            action: {"operationId": f"{resource}_{action}", "parameters": {name: f"$response.body#/{name}"}}
            for action in ("retrieve", "partial_update", "destroy")
            if action in view.scopes
        }

    def _codes(self) -> list[Any]:
        serializers = self.get_response_serializers()
        if isinstance(serializers, dict):
            return list(serializers)
        return [201] if self._is_create_operation() else [200]
