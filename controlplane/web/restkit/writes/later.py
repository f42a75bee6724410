"""Responses whose body is not certain before the commit of the change."""

from collections.abc import Callable
from typing import Any

from rest_framework.response import Response


class Later(Response):
    """A response to a change that reaches the store after the commit, whose body *read* returns also before."""

    def __init__(self, read: Callable[[], Any]) -> None:
        super().__init__(read())
        self._read = read

    def read_again(self) -> Response:
        """Return the response itself, with the body as it is now."""
        self.data = self._read()
        return self
