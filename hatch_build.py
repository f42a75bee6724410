"""Put the templates into the wheel. The repository has them at its top, where people read the documentation."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TemplatesHook(BuildHookInterface[Any]):
    """Add the templates, except to an editable install, which reads them where they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folder to the files of the wheel."""
        if version == "standard":
            build_data["force_include"]["templates"] = "controlplane/templates"
