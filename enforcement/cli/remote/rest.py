"""
Call the REST API of a control plane.

A change has an idempotency key, so that it is sent again if its response is lost, and is made once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TextIO

from enforcement.cli.remote.account import Account
from enforcement.cli.remote.problems import CommandProblem
from enforcement.settings import VERSION

if TYPE_CHECKING:
    import httpx2

TIMEOUT_SECONDS: Final = 30.0
# Waits between attempts of a change, which must not stay half done. A control plane that is restarted is back by then.
PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
READING_PAUSES: Final = (0.2,)
PAGE: Final = 200
# Codes of errors that say that the same request may succeed soon.
_SOON: Final = frozenset({"request_running", "database_unavailable", "rate_limited"})
MOST_PAUSE: Final = 60.0
_AWAY: Final = frozenset({502, 503, 504})
# Advice on a response, by its status.
_ADVICE: Final = {
    401: "Run `sluicegate login` with a key that is valid, or set SLUICEGATE_KEY to it.",
    403: "`sluicegate keys list` shows the keys. Whoever manages them can change this one or make another.",
}
_UNTRUSTED: Final = (
    "If the certificate is of an authority of your own, set SSL_CERT_FILE to the certificate of that authority."
)


class ServerAway(CommandProblem):
    """
    The control plane gave no usable response.

    Attributes:
        sent: Whether a request was sent that it may have executed.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class RequestRefused(CommandProblem):
    """
    The control plane refused a request.

    Attributes:
        status: The status of the response.
        code: The code of the problem, such as ``precondition_failed``.
        detail: What is wrong, in sentences.
        request_id: Names the request in the log of the control plane.
        pause: Seconds until a new attempt is worthwhile, as the response says. 0 if it does not.
        errors: The JSON pointer of each wrong value in the body, and the rule that it breaks.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        request_id: str,
        pause: float = 0,
        errors: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.request_id = status, code, detail, request_id
        self.pause, self.errors = pause, errors

    def __str__(self) -> str:
        about = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.status} {self.code}: {self.detail}{about}"


@dataclass(frozen=True, slots=True)
class RestReply:
    """
    A response.

    Attributes:
        body: Its JSON. None if it has none.
        etag: Names the state of the object, for ``If-Match``. Empty if there is none.
        revision: The revision that published the change, or ``pending``. Empty if nothing was changed.
        replayed: Whether it is the response to an earlier request with the same idempotency key.
        warning: What may be a mistake in the object, in words. Empty if nothing is.
    """

    body: Any
    etag: str = ""
    revision: str = ""
    replayed: bool = False
    warning: str = ""


class ControlPlane:
    """
    The REST API of one control plane.

    Args:
        account: Where it is, and the key.
        trace: Where requests are written, without secrets. None: nowhere.
        sleep: Waits for some seconds between attempts.
    """

    def __init__(
        self, account: Account, *, trace: TextIO | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.url = account.url
        self._trace, self.sleep = trace, sleep
        import httpx2  # only here and in _once, because it takes longer to import than all the rest

        self._client = httpx2.Client(
            base_url=f"{account.url}/api/v1/",
            headers={"Authorization": f"Bearer {account.key}", "User-Agent": f"sluicegate/{VERSION}"},
            timeout=TIMEOUT_SECONDS,
            # A redirect to another server would take the key with it.
            follow_redirects=False,
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **query: object) -> RestReply:
        """Return one object or page. Raises ServerAway and RequestRefused."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._repeated(READING_PAUSES, "GET", path, params=given)

    def page(self, path: str, **query: Any) -> dict[str, Any]:
        """Return a page of a list. Raises ServerAway and RequestRefused."""
        page = self.get(path, **query).body
        if not isinstance(page, dict) or not _is_list(page):
            raise _other_program(200, self.url, "its response is no list of Sluicegate")
        return page

    def pages(self, path: str, **query: object) -> Iterator[list[dict[str, object]]]:
        """Yield the rows of each page of a list. Raises ServerAway and RequestRefused."""
        query = {"page_size": PAGE, **query}
        while True:
            page = self.page(path, **query)
            yield page["results"]
            cursor = page.get("next_cursor")
            if not cursor:
                return
            query["cursor"] = cursor

    def rows(self, path: str, **query: object) -> Iterator[dict[str, Any]]:
        """Yield each row of a list. Raises ServerAway and RequestRefused."""
        for page in self.pages(path, **query):
            yield from page

    def ask(self, path: str, body: Any, *, timeout: float = TIMEOUT_SECONDS, **query: Any) -> Any:
        """Return the JSON of the response to a POST that changes nothing. Raises ServerAway and RequestRefused."""
        return self._repeated(READING_PAUSES, "POST", path, params=query, json=body, timeout=timeout).body

    def change(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str,
        etag: str = "",
        reason: str = "",
        timeout: float = TIMEOUT_SECONDS,
    ) -> RestReply:
        """
        Make a change once, however often it has to be sent.

        Args:
            key: The idempotency key.
            etag: The state of the object that is changed. Empty: any state.
            reason: For the audit.
            timeout: Seconds that one attempt may take.
        Raises:
            RequestRefused: Nothing was changed.
            ServerAway: If it was sent, the change may have been made.
        """
        headers = {"Idempotency-Key": key}
        headers |= {"If-Match": etag} if etag else {}
        sent: dict[str, object] = {} if body is None else {"json": body}
        encoded = {name.encode(): value.encode() for name, value in headers.items()}
        if reason := " ".join(reason.split()):  # a header is one line, and the message of a commit may be several
            encoded[b"Sluicegate-Reason"] = reason.encode()
        return self._repeated(PAUSES, method, path, headers=encoded, timeout=timeout, **sent)

    def _repeated(self, pauses: tuple[float, ...], method: str, path: str, **options: object) -> RestReply:
        sent = False
        for pause in (*pauses, None):
            try:
                return self._once(method, path, **options)
            except ServerAway as exc:
                sent = sent or exc.sent
                if pause is None:
                    raise ServerAway(str(exc), sent=sent) from None
            except RequestRefused as exc:
                if pause is None or exc.code not in _SOON:
                    raise
                pause = max(pause, min(exc.pause, MOST_PAUSE))
            self.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, method: str, path: str, **options: Any) -> RestReply:
        import httpx2

        begun = time.monotonic()
        try:
            response = self._client.request(method, path, **options)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol) as exc:
            advice = _UNTRUSTED if "CERTIFICATE_VERIFY_FAILED" in str(exc) else "Check the address."
            raise ServerAway(f"{self.url} cannot be reached: {_reason(exc)}. {advice}", sent=False) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise ServerAway(f"{self.url} gave no whole response: {_reason(exc)}.", sent=True) from None
        self._told(method, response, time.monotonic() - begun)
        return _read(response, self.url)

    def _told(self, method: str, response: httpx2.Response, seconds: float) -> None:
        """Write one line about a request, with neither its headers nor its body, which may have secrets."""
        if self._trace is not None:
            about = response.headers.get("X-Request-Id", "")
            line = f"{method} {response.request.url.path} {response.status_code} {seconds * 1000:.0f} ms {about}"
            print(line.rstrip(), file=self._trace)


def _reason(exc: Exception) -> str:
    """Return what is wrong in words. The text of an error may be empty, and never has a header."""
    return str(exc).rstrip(".") or type(exc).__name__


def _read(response: httpx2.Response, url: str) -> RestReply:
    """Return a response, or raise the error that it is."""
    body = None
    if response.content:
        try:
            body = response.json(object_hook=_of_control_plane(url))
        except ValueError:
            body = None
    if response.is_success and (body is not None or not response.content):
        headers = response.headers
        replayed = headers.get("Idempotency-Replayed") == "true"
        revision, warning = headers.get("Sluicegate-Revision", ""), headers.get("Sluicegate-Warning", "")
        return RestReply(body, headers.get("ETag", ""), revision, replayed, warning)
    if isinstance(body, Mapping) and "code" in body:
        after = response.headers.get("Retry-After", "")
        detail = " ".join(filter(None, (str(body.get("detail", "")), _ADVICE.get(response.status_code, ""))))
        about = detail, str(body.get("request_id", "")), float(after) if after.isdecimal() else 0
        raise RequestRefused(response.status_code, str(body["code"]), *about, errors_in(body))
    if response.status_code in _AWAY:
        raise ServerAway(f"{url} is away: {response.status_code} from a server in front of it.", sent=True)
    if response.is_redirect:
        raise RequestRefused(
            response.status_code, "redirect", f"{url} redirects. Log in to the address it leads to.", ""
        )
    raise _other_program(response.status_code, url, "its response is no JSON")


def errors_in(problem: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the errors of a problem, as far as they have the members that a control plane gives them."""
    errors = problem.get("errors", ())
    rows = [one for one in errors if isinstance(one, dict)] if isinstance(errors, list) else []
    return [(str(one["pointer"]), str(one["detail"])) for one in rows if "pointer" in one and "detail" in one]


def _is_list(page: Mapping[str, object]) -> bool:
    rows = page.get("results")
    return isinstance(rows, list) and "next_cursor" in page and all(isinstance(row, dict) for row in rows)


def _of_control_plane(url: str) -> Callable[[dict[str, object]], dict[str, object]]:
    """Return a function that makes of an object of JSON one whose missing members are an error of the server."""

    class Members(dict[str, object]):
        def __missing__(self, name: str) -> object:
            raise _other_program(200, url, f"its response has no {name!r}")

    return Members


def _other_program(status: int, url: str, why: str) -> RequestRefused:
    detail = f"{url} is no control plane of Sluicegate, because {why}. Check the address."
    return RequestRefused(status, "no_control_plane", detail, "")


def trace_to(enabled: bool) -> TextIO | None:
    """Return where ``--trace`` writes."""
    return sys.stderr if enabled else None
