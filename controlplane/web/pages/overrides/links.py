"""The link from the page of a token or project to the one that raises a limit."""

from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from unfold.enums import ActionVariant

from controlplane.objects.projects.models import Project, Token
from controlplane.web.kit.dialogs import action


def raise_name(model: type[Token] | type[Project]) -> str:
    """Return the name of the address of the page that raises a limit of a token or project."""
    return f"projects_{model._meta.model_name}_raise"


def raise_url(holder: Token | Project) -> str:
    """Return the address of the page that raises a limit of a token or project."""
    return reverse(f"admin:{raise_name(type(holder))}", args=[holder.pk])


@action(description="Raise a limit", permissions=["change"], icon="trending_up", variant=ActionVariant.PRIMARY)
def raise_limit(page: Any, request: HttpRequest, object_id: str) -> HttpResponse:
    """Return a redirect to the page that raises a limit of a row."""
    return HttpResponseRedirect(raise_url(page.model(pk=page.key_of(object_id))))
