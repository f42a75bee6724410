import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
APPS = (
    *(
        "access",
        "alerts",
        "audit",
        "changes",
        "consumers",
        "drafts",
        "emergency",
        "explain",
        "fleet",
        "jobs",
        "keys",
        "managed",
    ),
    *("overrides", "policies", "preview", "prices", "projects", "publishing", "reservations", "review"),
    *("revisions", "statements", "usage", "webhooks"),
)


def named_in_the_contract() -> set[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["controlplane"])
    return {name for layer in layers for name in re.split(r"\s*[|:]\s*", layer)}


def test_each_module_of_an_app_has_its_layer():
    """The linter demands a layer for each room; the rooms of the apps are spread over the layers, module by module."""
    found = {
        f"{app}.{path.stem}"
        for app in APPS
        for path in (ROOT / "controlplane" / app).iterdir()
        if path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").exists())
    }

    assert found <= named_in_the_contract()
    assert {name for name in named_in_the_contract() if name.partition(".")[0] in APPS} <= found
