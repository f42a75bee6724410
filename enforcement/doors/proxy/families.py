"""Describe the tighter of two limits to the client, if the upstream describes one by the same header fields."""

from __future__ import annotations

from enforcement.http.asgi import Message, Send
from enforcement.http.families import families_in, tighter_families
from enforcement.http.messages import added_headers
from enforcement.plan.decision import Decision


def tighter(send: Send, decision: Decision, preset: str) -> Send:
    """
    Return a function that sends a response without those header fields of the upstream that ours take the place of.

    Args:
        send: Adds the fields of the decision, but none of a family that the response has already.
        decision: The decision on the request.
        preset: The preset of its fields.
    """

    async def choosing(message: Message) -> None:
        if message["type"] == "http.response.start":
            theirs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
            ours = tighter_families(theirs, added_headers(decision, preset))
            if ours:
                fields = message["headers"]
                others = [item for item in fields if families_in([item[0].decode("latin-1")]).isdisjoint(ours)]
                message = {**message, "headers": others}
        await send(message)

    return choosing
