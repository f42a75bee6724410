"""The places of the requests that are under way to an upstream, and how tokens and projects share them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

MOST_PLACES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Places:
    """
    The places of each upstream.

    A share is that of the places which nobody else has. So one that is alone gets its share of all places, several of
    them get less each, and some are always left for whoever comes next.

    Attributes:
        number: How many there are in a process.
        token_share: The share of one token, in percent. 100: it has no bound.
        project_share: The share of a project, with its requests without a token, in percent. 100: it has no bound.
    """

    number: int = 1_000
    token_share: int = 25
    project_share: int = 50


USUAL_PLACES: Final = Places()


class Crowded(Exception):
    """A token or a project, which *who* says, has its share of the places already."""

    def __init__(self, who: str) -> None:
        super().__init__(who)
        self.who = who


class SharedPlaces:
    """
    The places of one upstream, and who has them.

    Attributes:
        left: How many are free.
        refused: How many requests were refused, by ``token`` and ``project``, whose share was taken, and ``full``.
    """

    def __init__(self, places: Places) -> None:
        self.left = places.number
        self.refused: Counter[str] = Counter()
        self._places = places
        self._of_tokens: dict[str, int] = {}
        self._of_projects: dict[str, int] = {}

    @property
    def taken(self) -> int:
        """How many have a place or wait for one."""
        return sum(self._of_projects.values())

    def claim(self, project: str, token: str) -> None:
        """
        Count a request among those that have a place or wait for one, until :meth:`give_up`.

        Args:
            project: The id of its project.
            token: The id of its token. Empty: it has none, and is bounded by its project only.
        Raises:
            Crowded: That would be more than a share.
        """
        left, of_token, of_project = self.left or 1, self._of_tokens.get(token, 0), self._of_projects.get(project, 0)
        if of_token and token and (of_token + 1) * 100 > (of_token + left) * self._places.token_share:
            self.refused["token"] += 1
            raise Crowded("token")
        if of_project and (of_project + 1) * 100 > (of_project + left) * self._places.project_share:
            self.refused["project"] += 1
            raise Crowded("project")
        self._of_tokens[token], self._of_projects[project] = of_token + 1, of_project + 1

    def give_up(self, project: str, token: str) -> None:
        """Forget a request that was counted."""
        for taken, name in ((self._of_tokens, token), (self._of_projects, project)):
            if taken[name] > 1:
                taken[name] -= 1
            else:
                del taken[name]
