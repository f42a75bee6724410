"""The part of all slugs of policies that belongs to one project."""


def slug_error(slug: str, project: str) -> str:
    """
    Return how a slug must begin to lie in the part of all slugs that belongs to a project, or "" if it does.

    A slug in use is refused, so who sees only some projects could otherwise learn the slugs of the others' policies.

    Args:
        project: The slug of the project.
    """
    head, separator, name = slug.rpartition("--")
    if (head, separator) == (project, "--") and name and not name.startswith("-"):
        return ""
    return f'Must be "{project}--" and a name without "--"'
