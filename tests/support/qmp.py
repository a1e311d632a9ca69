"""QEMU's line for machines (QMP): hears what happens to one, and wakes it when it has gone to sleep.

https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

import json
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import TextIO


class Watched:
    """Listens for one QEMU, which gets `words`; each sleep of its machine is ended as soon as it has begun.

    A clock in the machine would not do: an alarm that rings before the machine is asleep wakes nobody.
    """

    def __init__(self, path: Path) -> None:
        self.events: list[str] = []
        self.words = ("-qmp", f"unix:{path}")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Wakes a thread that waits for a QEMU which never came.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        try:
            line, _ = self._listener.accept()
        except OSError:
            return  # there was no QEMU
        with line, line.makefile("rw") as stream:
            for said in map(json.loads, stream):
                if "QMP" in said:
                    self._ask(stream, "qmp_capabilities")
                elif "event" in said:
                    self.events.append(said["event"])
                    if said["event"] == "SUSPEND":
                        self._ask(stream, "system_wakeup")

    @staticmethod
    def _ask(stream: TextIO, command: str) -> None:
        stream.write(json.dumps({"execute": command}) + "\n")
        stream.flush()
