"""Doors for the vectors: each scenario goes through a framework, and its answers must say what the decisions say."""

import asyncio
import json
from typing import Annotated, Any

from django.http import HttpResponse
from django.test import RequestFactory
from fastapi import Depends, FastAPI
from flask import Flask
from rest_framework.response import Response
from rest_framework.views import APIView, exception_handler
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from enforcement import Denied
from enforcement.doors import django as django_door
from enforcement.doors import flask as flask_door
from enforcement.doors import starlette as starlette_door
from enforcement.doors.drf import SimpleRateThrottle
from enforcement.doors.fastapi import Admission, admit, install, limited
from tests.enforcement.vectors import AsyncDoor, SyncDoor


def check_answer(decision: Any, status: int, headers: dict[str, str], body: bytes) -> Any:
    """Compare an answer with its decision, and return that."""
    assert status == decision.status
    told = {name.lower(): value for name, value in decision.headers().items()}
    assert {name: headers.get(name) for name in told} == told
    if not decision.allowed:
        assert json.loads(body) == decision.problem()
    return decision


def has_slots(limits: Any) -> bool:
    return any(limit.algorithm == "concurrency" for limit in limits)


class WaitingDoor(SyncDoor):
    """Callers that would wait, if they had any time for it."""

    def hit(self, name, limits, key, costs):
        try:
            return self.limiter(name).acquire(limits, key, costs, max_wait=0)
        except Denied as denied:
            return denied.decision


async def answer_of(app, path):
    """Send a request to an ASGI application, compare the answer with the decision, and return that."""
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    sent = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    body = b"".join(message.get("body", b"") for message in sent)
    return check_answer(scope["sluicegate.visit"].decisions[-1], sent[0]["status"], headers, body)


class StarletteDoor(AsyncDoor):
    """An application for each set of limits, with one endpoint; reservations are the limiter's own there."""

    PREFIX = "v:key:"

    def __init__(self, *args):
        super().__init__(*args)
        self.apps: dict[Any, Starlette] = {}
        self.key, self.costs = "", 1

    def hit(self, name, limits, key, costs):
        if has_slots(limits):
            return super().hit(name, limits, key, costs)
        self.key, self.costs, place = key.removeprefix(self.PREFIX), costs, (name, tuple(limits))
        if place not in self.apps:
            self.apps[place] = self.make(self.limiter(name), limits)
        return self.runner.run(answer_of(self.apps[place], "/"))

    def make(self, limiter, limits):
        @starlette_door.limited(limits, key=lambda _: self.key, scope="v", costs=lambda _: self.costs)
        async def endpoint(request):
            return PlainTextResponse("")

        app = Starlette(routes=[Route("/", endpoint)])
        starlette_door.install(app, limiter)
        return app


class FastAPIDoor(AsyncDoor):
    """An application for each limiter, with a path operation for each set of limits; ASGI, without a server."""

    PREFIX = "v:key:"

    def __init__(self, *args):
        super().__init__(*args)
        self.apps: dict[str, FastAPI] = {}
        self.paths: dict[Any, str] = {}
        self.key, self.costs = "", 1
        self.entered: Any = None
        self.asked_to_leave: Any = None

    def app(self, name):
        if name not in self.apps:
            self.apps[name] = FastAPI()
            install(self.apps[name], self.limiter(name))
        return self.apps[name]

    def path(self, name, limits, make, operation):
        place = name, make, tuple(limits)
        if place not in self.paths:
            self.paths[place] = f"/{len(self.paths)}"
            dependency = make(limits, key=lambda _: self.key, scope="v", costs=lambda _: self.costs)
            self.app(name).get(self.paths[place])(operation(dependency))
        return self.paths[place]

    def hit(self, name, limits, key, costs):
        if has_slots(limits):  # a path operation would hold them, and be over at once
            return super().hit(name, limits, key, costs)
        self.key, self.costs = key.removeprefix(self.PREFIX), costs

        def operation(dependency):
            async def run(decision: Annotated[Any, Depends(dependency)]) -> bool:
                return decision.allowed

            return run

        return self.runner.run(answer_of(self.app(name), self.path(name, limits, limited, operation)))

    def reserve(self, name, limits, key, costs):
        self.key, self.costs = key.removeprefix(self.PREFIX), costs

        def operation(dependency):
            async def run(admission: Annotated[Admission, Depends(dependency)]) -> None:
                leave = self.asked_to_leave
                self.entered.set_result(admission)
                await leave

            return run

        return self.runner.run(self._reserve(self.app(name), self.path(name, limits, admit, operation)))

    async def _reserve(self, app, path):
        loop = asyncio.get_running_loop()
        self.entered, self.asked_to_leave = loop.create_future(), loop.create_future()
        request = loop.create_task(answer_of(app, path))
        await asyncio.wait([request, self.entered], return_when=asyncio.FIRST_COMPLETED)
        if request.done():
            raise Denied(request.result())
        return (request, self.asked_to_leave), self.entered.result()

    def leave(self, stack):
        request, leave = stack

        async def leaving():
            leave.set_result(None)
            await request

        self.runner.run(leaving())

    def cancel(self, stack, admission):
        request, leave = stack

        async def cancelling():
            leave.set_exception(RuntimeError())
            await asyncio.wait([request])
            assert isinstance(request.exception(), RuntimeError)
            await admission.cancel()

        self.runner.run(cancelling())


class DjangoDoor(SyncDoor):
    """A decorated view; reservations are the limiter's own there."""

    PREFIX = "v:key:"

    def hit(self, name, limits, key, costs):
        if has_slots(limits):
            return super().hit(name, limits, key, costs)
        request, found = RequestFactory().get("/"), key.removeprefix(self.PREFIX)
        view = django_door.limited(limits, key=lambda _: found, scope="v", costs=lambda _: costs)(
            lambda _: HttpResponse()
        )
        response = self.through(name, view, request)
        return check_answer(request.sluicegate, response.status_code, _lower(response), response.content)

    def through(self, name, view, request):
        """Ask a view, whose limiter shall be this one."""
        installed, before = django_door._installed, django_door._installed._limiter
        installed._limiter = self.limiter(name)
        try:
            return view(request)
        finally:
            installed._limiter = before


class FlaskDoor(SyncDoor):
    """An application for each set of limits, with one view; reservations are the limiter's own there."""

    PREFIX = "v:key:"

    def __init__(self, *args):
        super().__init__(*args)
        self.apps: dict[Any, Flask] = {}
        self.key, self.costs = "", 1
        self.decisions: list[Any] = []

    def hit(self, name, limits, key, costs):
        if has_slots(limits):
            return super().hit(name, limits, key, costs)
        self.key, self.costs, place = key.removeprefix(self.PREFIX), costs, (name, tuple(limits))
        if place not in self.apps:
            self.apps[place] = self.make(self.limiter(name), limits)
        response = self.apps[place].test_client().get("/")
        return check_answer(self.decisions[-1], response.status_code, _lower(response), response.data)

    def make(self, limiter, limits):
        app = Flask("vectors")
        app.testing = True  # errors are raised and not answered
        flask_door.install(app, limiter)
        # What is registered later runs earlier, when the decisions are still in the visit.
        app.after_request(lambda response: self.decisions.extend(flask_door._visit().decisions) or response)
        rule = flask_door.limited(limits, key=lambda _: self.key, scope="v", costs=lambda _: self.costs)
        app.get("/")(rule(lambda: ""))
        return app


class DrfDoor(DjangoDoor):
    """A throttle of Django REST framework; a denial has the framework's own body."""

    PREFIX = "drf:key:"

    def hit(self, name, limits, key, costs):
        if has_slots(limits):
            return super().hit(name, limits, key, costs)
        request, found = RequestFactory().get("/"), key.removeprefix(self.PREFIX)
        rule = {"rate": tuple(limits), "cost": costs, "get_cache_key": lambda *_: found}
        # The framework's own, and not that of the control plane's settings.
        handler = {"get_exception_handler": lambda _: exception_handler}
        fields = {
            **handler,
            "throttle_classes": [type("Throttle", (SimpleRateThrottle,), rule)],
            "get": lambda *_: Response(),
        }
        view = type("View", (APIView,), {**fields, "authentication_classes": [], "permission_classes": []}).as_view()
        response = self.through(name, view, request)
        decision = request.sluicegate
        assert response.status_code == decision.status
        assert response.headers.get("Retry-After") == decision.headers().get("Retry-After")
        return decision


def _lower(response: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
