"""The OpenAPI document, the page that shows it, and the response for unknown addresses."""

from collections.abc import Sequence
from typing import Any

from django.urls import reverse
from drf_spectacular.renderers import OpenApiJsonRenderer2
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.exceptions import NotFound
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.web.restkit.schema import DESCRIPTION
from controlplane.web.restkit.throttling import ThrottledView


class OpenApi(ThrottledView, SpectacularAPIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)
    renderer_classes = [OpenApiJsonRenderer2]
    custom_settings = {"DESCRIPTION": DESCRIPTION}


class Documentation(SpectacularSwaggerSplitView):
    """Swagger UI, served from an installed package without any request to another host."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    url_name = "openapi"


@extend_schema(exclude=True)
class Index(ThrottledView):
    """The list of resources, for people who open the address of the API."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    resources: Sequence[str] = ()

    def get(self, request: Request) -> Response:
        def address(path: str) -> str:
            return request.build_absolute_uri(reverse("index") + path)

        pages = {"documentation": address("docs/"), "openapi": address("openapi.json")}
        return Response({**pages, "resources": {name: address(name) for name in sorted(self.resources)}})


@extend_schema(exclude=True)
class NoSuchPath(ThrottledView):
    authentication_classes = ()
    permission_classes = (AllowAny,)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Raise NotFound for every method."""
        super().initial(request, *args, **kwargs)
        hint = (
            "Addresses have no slash at the end."
            if request.path.endswith("/")
            else "/api/v1/docs/ lists all addresses."
        )
        raise NotFound(f"There is nothing at this address. {hint}")
