"""What apps did from one run to the next, by their agents' word: rows beside those of the measured log."""

import time
from collections.abc import Iterator

from secrun.errors import ImageError, StateError
from secrun.locks import is_missing
from secrun.paths import Layout
from secrun.pod import lifestate
from secrun.pod.lifestate import LifeState
from secrun.pod.states import Found, State, walk
from secrun.stage1.podfiles import PodFiles
from secrun_attest.audit.trail import Row

RESTARTED, HEALTH = "AppRestart", "AppHealth"
# No record of the log has this number.
NO_RECORD = -1
# Seldom enough for a host of a thousand pods.
_PAUSE_SECONDS = 1.0
_NS_PER_MS = 1_000_000


class LifeRows:
    """Tells each change once: first of all pods that are there, then of those that run."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[tuple[str, str], tuple[int, str]] = {}
        self._looked: float | None = None

    def __call__(self) -> Iterator[Row]:
        """Yield what is new; looks at most once a second."""
        now = time.monotonic()
        if self._looked is not None and now - self._looked < _PAUSE_SECONDS:
            return
        first, self._looked = self._looked is None, now
        for found in walk(self._layout):
            if first or found.state is State.RUNNING:
                yield from self._of_pod(found)

    def _of_pod(self, found: Found) -> Iterator[Row]:
        try:
            files = PodFiles(found.path)
            manifest = files.read_manifest()
            states = [(app.name, lifestate.read(files, app.name)) for app in manifest.apps]
        except (StateError, ImageError):
            return  # list names it
        except OSError as error:
            if not is_missing(error):
                raise
            return
        for name, state in states:
            if state is not None:
                yield from self._of_app(found.uuid, name, state)

    def _of_app(self, uuid: str, app: str, state: LifeState) -> Iterator[Row]:
        restarts, health = self._known.get((uuid, app), (0, "starting"))
        if state.restarts > restarts:
            yield _row(
                RESTARTED,
                uuid,
                app,
                state.began_ns,
                code=None if state.last is None else state.last.code,
                what=f"{state.restarts} in all",
                why="" if state.last is None else state.last.error,
            )
        if state.health is not None and state.health.state != health:
            last = state.health.checks[-1] if state.health.checks else None
            yield _row(
                HEALTH,
                uuid,
                app,
                last.ended_ns if last else state.began_ns,
                what=state.health.state,
                why=last.output.partition("\n")[0] if last else "",
            )
            health = state.health.state
        self._known[uuid, app] = (max(restarts, state.restarts), health)


def _row(event: str, uuid: str, app: str, ns: int, *, what: str, why: str, code: int | None = None) -> Row:
    return Row(
        leaf=NO_RECORD,
        epoch="",
        number=0,
        time=ns // _NS_PER_MS,
        event=event,
        pod=uuid,
        apps=(app,),
        code=code,
        what=what,
        why=why,
    )
