"""Hatchling's hook: a wheel that holds the agent is for one machine type, not for any."""

import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelTag(BuildHookInterface):
    """Names the platform in the wheel, and refuses to build one without the agent."""

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        """Set the tag; the editable install may come before the agent is built."""
        if version != "editable" and not Path(self.root, "runtime/secrun/_agent/secrun-agent").is_file():
            raise FileNotFoundError("runtime/secrun/_agent/secrun-agent is missing: run make setup")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
