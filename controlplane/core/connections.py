"""A WSGI application that closes connections. It cannot do so by a header, because connections belong to the server."""

from collections.abc import Callable, Iterable
from typing import Any

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def close_after_refused_body(application: Application) -> Application:
    """
    Return a new application that runs *application* and closes the connection after a response with status 411 or 413.

    The rest of such a body is not read. On a connection that stays open, the client would send its next request behind
    it. gunicorn drops the header Connection of an application, but its response has a method for this, and
    *start_response* is a method of the same response. With another server nothing changes.
    """

    def closing(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            if status.startswith(("411", "413")):
                close = getattr(getattr(start_response, "__self__", None), "force_close", None)
                if close is not None:
                    close()
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        return application(environ, start)

    return closing
