"""Let this process import ``enforcement`` from a given tree. Imports nothing itself, so that imports can be timed."""

import sys


def take(tree: str) -> None:
    """
    Import ``enforcement`` from *tree*, and everything else from where it was before.

    A package finds its modules in its own folder. So the tree has to be on the path for the first import only, and
    the ``benchmarks`` of the tree cannot get in the way of this one.

    Raises:
        ImportError: Another tree's package was imported.
    """
    sys.path.insert(0, tree)
    try:
        import enforcement
    finally:
        sys.path.remove(tree)
    check(enforcement.__file__, tree)


def check(file: str | None, tree: str) -> None:
    """Raise ImportError unless *file* is that of the ``enforcement`` in *tree*."""
    expected = f"{tree}/enforcement/__init__.py"
    if file != expected:
        raise ImportError(f"enforcement: must be {expected}, got {file}")
