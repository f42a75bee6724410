"""The columns of a limit, and the fields of the library's value that they hold."""

from enforcement.model.metered import CHARGE_AS, UNMETERED

# What a limit may do with a model without a price. To charge it as another one, it names that one.
UNPRICED = (*UNMETERED, CHARGE_AS)

# The names in the JSON of a limit's match, and the columns that hold them.
MATCH_FIELDS = {"methods": "match_methods", "path": "match_path", "attributes": "match_attributes"}


def choices(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return pairs of each name and its label, for the choices of a field."""
    return [(name, name.replace("_", " ")) for name in names]


LIMIT_COLUMNS = (
    "name",
    "algorithm",
    "quota",
    "window_seconds",
    "calendar",
    "time_zone",
    "burst",
    "rollover",
    "unit",
    "partition_by",
    "mode",
    "consistency",
    "on_store_failure",
    "charge_on",
    "weights",
    "unmetered",
)


def column_of(field: str) -> str:
    """
    Return the column that holds *field* of the value, such as ``match_path`` for ``match.path``, else ``__all__``.
    """
    head, _, rest = field.partition(".")
    if head == "match":
        return MATCH_FIELDS.get(rest.partition(".")[0], "match_attributes")
    return head if head in {*LIMIT_COLUMNS, "anchor", "unpriced"} else "__all__"
