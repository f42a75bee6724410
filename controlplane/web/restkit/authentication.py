"""Authentication by management key, and the scopes that a key must have."""

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.db import OperationalError
from django.db.models import Q, QuerySet
from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.core.requests import came_through_unknown_proxy, client_address, log_author, request_id
from controlplane.core.text import escaped
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token, TokenQuerySet
from controlplane.web.restkit.problems import Problem
from controlplane.web.restkit.requests import MAX_REASON
from enforcement.model import tokens

logger = logging.getLogger(__name__)

UNKNOWN = "This key is unknown, revoked or expired."
REALM = 'Bearer realm="sluicegate"'
# A key in steady use costs one write a minute.
USED_PRECISION = timedelta(minutes=1)
# A key that is refused for what another program has written is noted in the audit so often at most.
NOTED_EVERY = timedelta(days=1)
MALFORMED = "managementkey.malformed"


@dataclass(frozen=True, slots=True)
class Access:
    """
    The rows that a key may see.

    Attributes:
        all_projects: Whether they are those of every project.
        project_ids: The projects of a limited key. Without any, such a key sees nothing.
    """

    key: ManagementKey
    all_projects: bool
    project_ids: frozenset[str]

    @classmethod
    def of(cls, key: ManagementKey) -> "Access":
        """Return a new access of a key, which is limited unless its column ``all_projects`` says otherwise."""
        if key.all_projects:
            return cls(key, True, frozenset())
        return cls(key, False, frozenset(key.projects.values_list("pk", flat=True)))

    @property
    def reaches_nothing(self) -> bool:
        """Whether every project to which the key was limited is deleted."""
        return not self.all_projects and not self.project_ids

    @property
    def reach(self) -> list[str] | None:
        """The ids of the projects that the key may see, or None for all of them."""
        return None if self.all_projects else sorted(self.project_ids)

    def covers(self, reach: list[str] | None) -> bool:
        """Return whether the key may see all projects of an earlier *reach* that still exist."""
        if self.all_projects:
            return True
        return reach is not None and not Project.objects.filter(pk__in={*reach} - self.project_ids).exists()

    def projects(self) -> QuerySet[Project]:
        return self.within(Project.objects.all(), "pk")

    def tokens(self) -> TokenQuerySet:
        return self.within(Token.objects.all(), "project")

    def policies(self) -> QuerySet[Policy]:
        """
        Return a query of the policies of the key's projects and the shared ones, none if all its projects are deleted.
        """
        if self.all_projects:
            return Policy.objects.all()
        if self.reaches_nothing:
            return Policy.objects.none()
        return Policy.objects.filter(Q(project=None) | Q(project__in=self.project_ids))

    def limits(self) -> QuerySet[Limit]:
        return Limit.objects.filter(policy__in=self.policies())

    def overrides(self) -> QuerySet[Override]:
        if self.all_projects:
            return Override.objects.all()
        return Override.objects.filter(Q(project__in=self.project_ids) | Q(token__project__in=self.project_ids))

    def owns(self, project_id: str | None) -> bool:
        """Return whether the key may change rows of this project, or, for None, rows that belong to no project."""
        return self.all_projects or project_id in self.project_ids

    def within[R: QuerySet](self, rows: R, column: str) -> R:
        """Return a query of the rows whose *column* names a project that the key may see."""
        return rows if self.all_projects else rows.filter(**{f"{column}__in": self.project_ids})


def keeps_access(access: Access, scope: str | None) -> Callable[[], bool]:
    """Return a function that reads anew whether the key is live, has the scope, and sees all that it sees now."""

    def keeps() -> bool:
        key = ManagementKey.objects.live(timezone.now()).filter(pk=access.key.pk).first()
        if key is None or scope is None or not key.allows(scope):
            return False
        return Access.of(key).covers(access.reach)

    return keeps


class LimitedKey(Problem):
    """Raised if a key that is limited to projects asks for something that concerns all of them."""

    status_code = 403
    default_detail = "This key is limited to some projects, and the request concerns all of them."
    default_code = "key_limited_to_projects"


class ManagementKeyAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[AnonymousUser, Access] | None:
        """
        Return an anonymous user and the access of the request's key, or None if there is no Authorization header.

        Raises:
            AuthenticationFailed: The header holds no live key. The message is the same for an unknown, a revoked and an
                expired key.
            ForeignNetwork: The key is limited to networks, and the client is in none of them.
        """
        header = request.headers.get("Authorization")
        if header is None:
            return None
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer":
            raise AuthenticationFailed("Authorization must use the scheme Bearer, as in: Bearer sg_mgmt_...")
        now = timezone.now()
        key = self.key(secret.strip(), now)
        log_author(key.name, "api")
        _check_network(key, request)
        _remember_use(key, now)
        return AnonymousUser(), Access.of(key)

    def key(self, secret: str, now: datetime) -> ManagementKey:
        """Return the live key with this secret, or raise AuthenticationFailed."""
        if not tokens.is_well_formed(secret):
            raise AuthenticationFailed(UNKNOWN)
        if not secret.startswith("sg_mgmt_"):
            raise AuthenticationFailed("This is a token of a project. Send a management key, which begins sg_mgmt_.")
        digest = tokens.digest(secret)
        key = ManagementKey.objects.live(now).filter(digest=digest).first()
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise AuthenticationFailed(UNKNOWN)
        return key

    def authenticate_header(self, request: Request) -> str:
        return f'{REALM}, error="invalid_token"' if request.headers.get("Authorization") else REALM


def _check_network(key: ManagementKey, request: Request) -> None:
    """Raise ForeignNetwork unless the client is in a network of the key. Only trusted proxies say who the client is."""
    if key.networks is None:
        return
    address = client_address(request)
    try:
        if key.allows_from(address):
            return
    except ValueError as exc:
        _note_malformed(key, request, str(exc))
        raise ForeignNetwork("The networks of this key are not valid, so that it may be used from nowhere.") from exc
    if came_through_unknown_proxy(request):
        # A client may also have invented the header, so the key stays refused.
        logger.warning(
            "The management key %s is refused from %s. The request was forwarded. If this is the address of a proxy, "
            "add it to SLUICEGATE_TRUSTED_PROXIES.",
            key,
            address,
        )
    raise ForeignNetwork(f"This key may not be used from {address or 'an unknown address'}.")


def _note_malformed(key: ManagementKey, request: Request, rule: str) -> None:
    """Say in the log, and once a day in the audit, that a key is refused for what another program has written."""
    logger.error("The management key %s is refused, because its networks are not valid: %s", key, rule)
    lately = timezone.now() - NOTED_EVERY
    if AuditEntry.objects.filter(action=MALFORMED, object_id=key.pk, at__gt=lately).exists():
        return
    reason = f"Its networks are not valid, so that it is refused: {rule}"
    with change(actor=Actor(key.name, "api", request_id(request)), reason=escaped(reason)[:MAX_REASON]) as tx:
        tx.record(MALFORMED, key, before=key.as_record(), after=key.as_record())


def _remember_use(key: ManagementKey, now: datetime) -> None:
    if key.last_used_at and key.last_used_at > now - USED_PRECISION:
        return
    try:
        # If several requests come at the same time, only one writes, because the others find the new time.
        unused = Q(last_used_at=None) | Q(last_used_at__lte=now - USED_PRECISION)
        ManagementKey.objects.filter(unused, pk=key.pk).update(last_used_at=now)
    except OperationalError as exc:
        logger.warning("The last use of the management key %s was not saved: %s", key, exc)


class HasScope(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        """
        Return True if the key has the scope of the view's action, False if the action has none, or raise an error of
        REST.

        Raises:
            NotAuthenticated: The request shows no key.
            Problem: The key lacks the scope, or it is limited to projects and the action concerns all of them.
        """
        access = request.auth
        if not isinstance(access, Access):
            raise NotAuthenticated("Send a management key in the header Authorization, as in: Bearer sg_mgmt_...")
        if request.method not in view.allowed_methods:
            return True  # the view then answers with 405
        scope = view.required_scope()
        if scope is None:
            return False
        if not access.key.allows(scope):
            raise InsufficientScope(scope)
        if access.reaches_nothing:
            raise LimitedKey("Every project to which this key was limited is deleted.")
        if view.concerns_all_projects() and not access.all_projects:
            raise LimitedKey
        return True


class ForeignNetwork(Problem):
    """Raised if a key that is limited to networks is used from elsewhere."""

    status_code = 403
    default_code = "network_not_allowed"


class InsufficientScope(Problem):
    """Raised if a key lacks a scope, which the response names."""

    status_code = 403
    default_code = "insufficient_scope"

    def __init__(self, scope: str, title: str = "") -> None:
        header = {"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{scope}"'}
        of_object = f"{title}: " if title else ""
        super().__init__(f"{of_object}This key lacks the scope {scope}.", headers=header)


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = ManagementKeyAuthentication
    name = "managementKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        how = "A management key, created in the admin or by `manage.py create_management_key`."
        return {"type": "http", "scheme": "bearer", "bearerFormat": "sg_mgmt_", "description": how}
