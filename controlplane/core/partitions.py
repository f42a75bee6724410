"""Values of what a limit is partitioned by as a text, one on each line, such as ``label.team = web``."""

from collections.abc import Mapping

from django.core.exceptions import ValidationError

from enforcement.model.matching import check_partition


def values_of(text: str) -> dict[str, str]:
    """Return the values of a partition that a text names, one on each line, such as ``label.team = web``."""
    return {name: value for name, _, value in (line.partition(" = ") for line in text.split("\n"))} if text else {}


def text_of(values: Mapping[str, str]) -> str:
    """Return the text that names the values of a partition, in the order of their names. Empty for none."""
    return "\n".join(f"{name} = {value}" for name, value in sorted(values.items()))


def with_values(text: str) -> str:
    """Return words for the end of a name, such as " with label.team = web", or nothing if the text names no values."""
    return " with " + text.replace("\n", ", ") if text else ""


def check_values(text: str) -> None:
    """Raise ValidationError for a text that names no values of a partition, or not in the order of their names."""
    try:
        if text_of(check_partition(values_of(text))) != text:
            raise ValueError("must have one name and value on each line, each once")
    except ValueError as exc:
        raise ValidationError(f"{str(exc)[0].upper()}{str(exc)[1:]}.", code="invalid_partition") from exc
