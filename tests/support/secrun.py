"""Drive the real command line against a root of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Generous: two busy cores; a test that needs it is about to fail anyway.
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one command printed and returned."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrun:
    """The command line with a fixed `--root` and `--run-root`."""

    root: Path
    run_root: Path
    image: str = ""
    """A busybox image in this root."""
    options: tuple[str, ...] = ()
    """Options before every verb."""
    prefix: tuple[str, ...] = ()
    """What the command is run by, e.g. nsenter."""
    network: str = "none"
    """What pods get that name no network: most tests need none, and it costs time."""

    def argv(self, *words: str | os.PathLike[str]) -> list[str]:
        return [
            *self.prefix,
            *(sys.executable, "-P", "-m", "secrun", "--root", str(self.root)),
            *("--run-root", str(self.run_root)),
            *self.options,
            *self._connected([os.fspath(word) for word in words]),
        ]

    def _connected(self, words: list[str]) -> list[str]:
        """Give pods the network of this command, unless they name one."""
        verb = next((index for index, word in enumerate(words) if not word.startswith("--")), len(words))
        starts = words[verb : verb + 1] in (["run"], ["prepare"])
        named = any(word.startswith("--net") for word in words)
        if not self.network or not starts or named:
            return words
        return [*words[: verb + 1], f"--net={self.network}", *words[verb + 1 :]]

    def __call__(
        self,
        *words: str | os.PathLike[str],
        code: int | None = 0,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command to its end; `code` is the exit status it must have, None for any."""
        done = subprocess.run(
            self.argv(*words),
            input=stdin.encode(),
            capture_output=True,
            timeout=DEADLINE_SECONDS * 2,
            env={**os.environ, **(environment or {})},
            check=False,
        )
        result = Result(
            code=done.returncode,
            out=done.stdout.decode("utf-8", "replace"),
            err=done.stderr.decode("utf-8", "replace"),
        )
        assert code is None or result.code == code, (words, result)
        return result

    def run(
        self, *words: str, options: tuple[str, ...] = (), code: int | None = 0, stdin: str = ""
    ) -> Result:
        """Run `words` in a busybox pod that is removed afterwards."""
        relaxed = ("--pull=never", "--insecure-options=image")
        return self("run", "--rm", *relaxed, *options, self.image, "--", *words, code=code, stdin=stdin)

    def detach(self, *words: str, options: tuple[str, ...] = ()) -> str:
        """Start a busybox pod in the background; return its UUID."""
        started = self(
            "run", "-d", "--pull=never", "--insecure-options=image", *options, self.image, "--", *words
        )
        return started.out.strip()

    def status(self, uuid: str) -> dict[str, object]:
        return json.loads(self("status", "--format=json", uuid).out)

    def pods(self) -> list[dict[str, object]]:
        return json.loads(self("list", "--format=json").out)["pods"]

    def discard(self, uuid: str) -> None:
        """Stop and remove a pod, whatever state it is in."""
        self("stop", "--force", uuid, code=None)
        self("rm", uuid)


def eventually(condition: Callable[[], object], what: str) -> object:
    """Wait until `condition` returns something true; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_SECONDS} s"
        time.sleep(0.02)
