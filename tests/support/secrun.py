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


# The same program, which looks for its files below another folder than /etc/secrun.
_ELSEWHERE = """
import sys
from pathlib import Path
from secrun import config
config.PLACES = (Path({place!r}),)
from secrun.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


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
    flavour: str = "nspawn"
    pod_options: tuple[str, ...] = ("--pull=never", "--insecure-options=image")
    """Options of every pod."""
    place: Path | None = None
    """Stands for /etc/secrun and its like."""

    def argv(self, *words: str | os.PathLike[str]) -> list[str]:
        program = (
            ("-m", "secrun") if self.place is None else ("-c", _ELSEWHERE.format(place=str(self.place)))
        )
        return [
            *self.prefix,
            *(sys.executable, "-P", *program, "--root", str(self.root)),
            *("--run-root", str(self.run_root)),
            *self.options,
            *self._connected([os.fspath(word) for word in words]),
        ]

    def _connected(self, words: list[str]) -> list[str]:
        """Give pods the network of this command, unless they name one."""
        verb = 0
        while verb < len(words) and words[verb].startswith("--"):
            # The one option before the verb whose value tests give as a word of its own.
            verb += 2 if words[verb] == "--config" else 1
        count = 2 if words[verb : verb + 1] == ["policy"] else 1
        starting = (["run"], ["prepare"], ["policy", "record"], ["policy", "check"])
        starts = words[verb : verb + count] in starting
        named = any(word.startswith("--net") for word in words)
        if not self.network or not starts or named:
            return words
        after = verb + count
        return [*words[:after], f"--net={self.network}", *words[after:]]

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
        before = ("run", "--rm", *self.pod_options, *options)
        return self(*before, self.image, "--", *words, code=code, stdin=stdin)

    def kept(self, *apps: str, code: int | None = 0, stdin: str = "") -> tuple[str, Result]:
        """Run a pod, given by its apps as on the command line, that stays; return its UUID too."""
        saved = self.root / f"uuid-{time.monotonic_ns()}"
        result = self("run", *self.pod_options, "--uuid-file-save", saved, *apps, code=code, stdin=stdin)
        return saved.read_text().strip(), result

    def prepare(self, *words: str, options: tuple[str, ...] = ()) -> str:
        """Prepare a busybox pod; return its UUID."""
        return self("prepare", *self.pod_options, *options, self.image, "--", *words).out.strip()

    def detach(self, *words: str, options: tuple[str, ...] = ()) -> str:
        """Start a busybox pod in the background; return its UUID."""
        return self("run", "-d", *self.pod_options, *options, self.image, "--", *words).out.strip()

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


def open_door(port: int) -> str:
    """Return shell words by which an app tells the others over their loopback how far it is."""
    return f"httpd -p {port} -h /etc"


def wait_for_door(port: int) -> str:
    """Return shell words by which an app waits for another one."""
    return f"until wget -qO /dev/null http://127.0.0.1:{port}/passwd 2>/dev/null; do sleep 0.1; done"
