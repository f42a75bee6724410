"""Names that databases, brokers, scripts and bookmarks keep. Code may move; these stay."""

from collections.abc import Iterator
from pathlib import Path

from django.apps import apps
from django.contrib.auth.management import _get_all_permissions
from django.core.management import get_commands
from django.urls import URLPattern, URLResolver, get_resolver

from controlplane.celery import app

NAMES = Path(__file__).parent / "names.txt"
OURS = "controlplane."


def addresses(patterns: list[URLPattern | URLResolver], before: str = "") -> Iterator[str]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            space = f"{before}{pattern.namespace}:" if pattern.namespace else before
            yield from addresses(pattern.url_patterns, space)
        elif pattern.name:
            yield f"address {before}{pattern.name}"


def names() -> set[str]:
    app.loader.import_default_modules()
    models = [model for model in apps.get_models(include_auto_created=True) if model.__module__.startswith(OURS)]
    return {
        *(f"task {name}" for name in app.tasks if name.startswith(OURS)),
        *(f"command {name}" for name, of in get_commands().items() if str(of).startswith(OURS)),
        *(f"table {model._meta.label} {model._meta.db_table}" for model in models),
        *(
            f"permission {model._meta.app_label}.{codename}"
            for model in models
            if not model._meta.auto_created
            for codename, _ in _get_all_permissions(model._meta)
        ),
        *addresses(get_resolver().url_patterns),
    }


def test_names_stay():
    """Whoever adds a name adds its line to ``names.txt``. None is taken away."""
    assert sorted(names()) == NAMES.read_text().splitlines()
