"""Build hook: put `configs/` into the wheel, beside the package's modules."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ConfigsHook(BuildHookInterface):
    """An editable install reads the configs of the checkout, so that only a wheel takes a copy."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folder to what the wheel holds."""
        if version == "standard":
            build_data["force_include"]["configs"] = "visionattn/configs"
