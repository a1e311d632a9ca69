"""Be a guest's service manager: the relay, then the apps' shims, and SIGTERM to the relay at their end.

`python agent_vm_guest.py SHIM...`: each argument is one shim's command line as a JSON list.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

AGENT = "/agent/secrun-agent"


def main() -> int:
    # A power-off sends it to every process; this one waits for the others.
    signal.signal(signal.SIGTERM, lambda *_: None)
    relay = subprocess.Popen([AGENT, "relay", "--link", "/host/link"])
    while not Path("/host/attach.sock").exists() and relay.poll() is None:
        time.sleep(0.01)
    shims = [subprocess.Popen([AGENT, "shim", *json.loads(words)]) for words in sys.argv[1:]]
    for shim in shims:
        shim.wait()
    if relay.poll() is None:
        relay.terminate()
    return relay.wait()


if __name__ == "__main__":
    sys.exit(main())
