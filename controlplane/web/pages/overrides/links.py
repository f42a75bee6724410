"""The link from the page of a token or project to the one that raises a limit."""

from django.contrib.admin.utils import unquote
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from unfold.enums import ActionVariant

from controlplane.objects.projects.models import Project, Token
from controlplane.web.kit.dialogs import Page, RowAction


def raise_name(model: type[Model]) -> str:
    """Return the name of the address of the page that raises a limit of a token or project."""
    return f"projects_{model._meta.model_name}_raise"


def raise_url(holder: Token | Project) -> str:
    """Return the address of the page that raises a limit of a token or project."""
    return reverse(f"admin:{raise_name(type(holder))}", args=[holder.pk])


def _raise(page: Page, request: HttpRequest, object_id: str) -> HttpResponse:
    return HttpResponseRedirect(reverse(f"admin:{raise_name(page.model)}", args=[unquote(object_id)]))


RAISE_LIMIT = RowAction(
    name="raise_limit", title="Raise a limit", icon="trending_up", variant=ActionVariant.PRIMARY, answer=_raise
)
