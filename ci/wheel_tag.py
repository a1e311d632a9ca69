"""Hatchling's hook: a wheel that holds the agent's programs is for one machine type, not for any."""

import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelTag(BuildHookInterface):
    """Names the platform in the wheel, and refuses to build one without them."""

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        """Set the tag; the editable install may come before the programs are built."""
        for name in ("secrun-agent", "secrun-stage0"):
            if version != "editable" and not Path(self.root, "runtime/secrun/_agent", name).is_file():
                raise FileNotFoundError(f"runtime/secrun/_agent/{name} is missing: run make setup")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
