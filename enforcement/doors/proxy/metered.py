"""Forward a metered request, and tell its meter what became of it at the upstream."""

from __future__ import annotations

from typing import Any

from enforcement.doors.metered.visit import MeteredVisit
from enforcement.doors.proxy.answers import PRESET
from enforcement.doors.proxy.connection import Connection
from enforcement.doors.proxy.fields import RequestFields
from enforcement.doors.proxy.forwarding import Forwarding
from enforcement.http.asgi import METERED, Message
from enforcement.http.messages import Header


class MeteredForwarding(Forwarding):
    """
    One metered request to the upstream.

    A request that no connection was found for costs nothing. One that was sent, and whose connection broke before an
    answer, is settled without the provider's last word, as that may have answered it.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._visit: MeteredVisit = self._scope[METERED]
        self._was_sent = False
        if self._visit.shape:
            self._scope[PRESET] = f"{self._scope[PRESET]}+{self._visit.shape}"
        self._visit.not_sent()

    def _begin(self, connection: Connection, head: bytes, fields: RequestFields, first: Message | None) -> None:
        self._was_sent = True
        self._visit.is_sent()
        body = self._visit.take_short_body(fields.length)
        if body is None:
            super()._begin(connection, head, fields, first)
            return
        # Nothing is left to be received, so the client is watched only if the answer takes long, as without a body.
        self._with_body = False
        connection.begin(head + body, without_body=False, whole=True)
        if self._timer is not None:  # the connection took long, and the client was not watched while it had a body
            self._listen(self._watch())

    async def _fail(self, status: int, title: str, fields: tuple[Header, ...] = ()) -> None:
        if self._was_sent and not self._begun:
            self._visit.broke()
        await super()._fail(status, title, fields)
