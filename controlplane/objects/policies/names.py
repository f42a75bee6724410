"""The names of what records name by an id."""

from collections.abc import Iterable

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.words.change import Change
from controlplane.changes.words.fields import Record
from controlplane.changes.words.words import is_override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from enforcement.model.metered import MONEY

POLICIES = ("policy", "anonymous_policy", "token_policy")
PROJECTS = ("project", "within")
TOKENS = ("token", "replaced_by")
USUAL = "requests"


class Names:
    """The present slugs of the policies and projects, and names of the tokens, that records name by their ids."""

    def __init__(self, records: Iterable[Record | None]) -> None:
        policies: set[str] = set()
        projects: set[str] = set()
        tokens: set[str] = set()
        there = [record for record in records if record]
        for record in there:
            policies |= {record[name] for name in POLICIES if isinstance(record.get(name), str)}
            projects |= {record[name] for name in PROJECTS if isinstance(record.get(name), str)}
            tokens |= {record[name] for name in TOKENS if isinstance(record.get(name), str)}
        self._slugs = dict(Policy.objects.filter(pk__in=policies).values_list("pk", "slug")) if policies else {}
        self._slugs |= dict(Project.objects.filter(pk__in=projects).values_list("pk", "slug")) if projects else {}
        self._money = self._limits_of_money(there)
        self._slugs |= dict(Token.objects.filter(pk__in=tokens).values_list("pk", "name")) if tokens else {}

    @staticmethod
    def _limits_of_money(records: Iterable[Record]) -> set[str]:
        """Return the names of the limits of money among those that records of overrides name."""
        named = {record["limit"] for record in records if is_override(record)}
        if not named:
            return set()
        rows = Limit.objects.filter(unit=MONEY, name__in={name.partition("/")[2] for name in named})
        return {f"{slug}/{name}" for slug, name in rows.values_list("policy__slug", "name")} & named

    def unit_of(self, limit: str) -> str:
        """Return the unit of the limit of an override, as far as it matters how people read its numbers."""
        return MONEY if limit in self._money else USUAL

    @classmethod
    def of(cls, entries: Iterable[AuditEntry]) -> "Names":
        """Return the names in the records of some audit entries."""
        return cls(record for entry in entries for record in (entry.before, entry.after))

    @classmethod
    def of_change(cls, change: Change) -> "Names":
        """Return the names in the records of a change, also of what it creates or deletes."""
        found = cls(record for one in change.objects for record in (one.before, one.after))
        for one in change.objects:
            record = one.after or one.before or {}
            if "slug" in record:
                found._slugs.setdefault(one.pk, record["slug"])
            of_money = (limit for limit in record.get("limits") or () if limit.get("unit") == MONEY)
            found._money |= {f"{record['slug']}/{limit['name']}" for limit in of_money}
        return found

    def shown(self, value: str) -> str:
        """Return the slug of a policy or project or the name of a token with this id, or the value itself."""
        return self._slugs.get(value, value)
