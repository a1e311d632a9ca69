"""Hatchling's hook: a wheel is for one machine type, for the agent's programs; it brings the manual."""

import sys
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelTag(BuildHookInterface):
    """Names the platform in the wheel, refuses to build one without the programs, writes the manual."""

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        """Set the tag; the editable install may come before the programs are built."""
        for name in ("secrun-agent", "secrun-stage0"):
            if version != "editable" and not Path(self.root, "runtime/secrun/_agent", name).is_file():
                raise FileNotFoundError(f"runtime/secrun/_agent/{name} is missing: run make setup")
        build_data["pure_python"] = False
        if version != "editable":
            build_data["shared_data"] = {
                str(page): f"share/man/{page.parent.name}/{page.name}" for page in self.manual()
            }
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def manual(self) -> list[Path]:
        """Write the manual pages and return their files."""
        sys.path.insert(0, str(Path(self.root, "ci")))
        import man

        return man.write(Path(self.root, "build/man"))
