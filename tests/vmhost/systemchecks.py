"""Secrets and system containers under enforcing SELinux, with the service manager's own credentials."""

import json
from pathlib import Path

from vmhost.kit import IDLE, LAYOUT, RELAXED, check, eventually, run, secrun, tool

SYSTEM = LAYOUT.replace("/images:busybox", "/system:system")
PASSWORD = "correct horse battery staple"


def _holders(top: str) -> list[str]:
    return tool("grep", "-rlsF", PASSWORD, top, code=None).splitlines()


@check
def a_units_encrypted_credential_is_a_file_of_the_app_and_nowhere_else() -> None:
    plain, sealed = Path("/run/db"), Path("/run/db.cred")
    plain.write_text(PASSWORD)
    # Sealed by the TPM of this machine where systemd finds one.
    tool("systemd-creds", "encrypt", "--name=db", plain, sealed)
    plain.unlink()
    saved = Path("/run/secret-uuid")
    words = ("run", *RELAXED, "--secret=db,uid=5,mode=400", f"--uuid-file-save={saved}", LAYOUT, "--")
    show = f"stat -c %u:%a /run/secrets/db; wc -c </run/secrets/db; {IDLE[2]}"
    unit = ("systemd-run", "--unit=secret", "--quiet", f"--property=LoadCredentialEncrypted=db:{sealed}")
    tool(*unit, "secrun", *words, "sh", "-c", show)
    journal = ("journalctl", "--unit=secret", "--output=cat")
    eventually(lambda: "up" in tool(*journal).splitlines(), "the app's line in the journal")
    assert tool(*journal).splitlines()[-3:] == ["5:400", str(len(PASSWORD)), "up"]
    assert _holders("/var/lib/secrun") == []
    assert _holders("/run/secrun") == []
    tool("systemctl", "stop", "secret")
    secrun("rm", f"--uuid-file={saved}")


@check
def a_credential_of_the_hosts_store_is_found_by_its_name() -> None:
    store = Path("/etc/credstore.encrypted")
    store.mkdir(exist_ok=True)
    plain = Path("/run/stored")
    plain.write_text(PASSWORD)
    tool("systemd-creds", "encrypt", "--name=stored", plain, store / "stored")
    plain.unlink()
    assert run("cat", "/run/secrets/stored", options=("--secret=stored",)) == PASSWORD


@check
def a_guest_gets_its_secret_over_its_line() -> None:
    source = Path("/run/guest-secret")
    source.write_text(PASSWORD)
    machine = ("--stage1=kvm", f"--secret={source}")
    assert run("cat", "/run/secrets/guest-secret", options=machine) == PASSWORD


@check
def systemd_runs_inside_an_app_with_limits_of_its_services() -> None:
    secrun("fetch", "--insecure-options=image", SYSTEM)
    options = ("--systemd=true", "--memory=128m", "--name=sys")
    uuid = secrun("run", "-d", *RELAXED, *options, SYSTEM).strip()

    def inside(*words: str) -> str:
        return secrun("enter", "--app=sys", uuid, "--", *words, code=None)

    eventually(lambda: inside("systemctl", "is-system-running") == "running\n", "a running system")
    assert inside("systemctl", "--failed", "--no-legend", "--plain") == ""
    assert int(inside("systemctl", "show", "--value", "-p", "MemoryCurrent", "hello")) > 0
    assert inside("cat", "/sys/fs/cgroup/memory.max") == "max\n"
    (app,) = json.loads(secrun("cat-manifest", uuid))["apps"]
    assert "control-group:sys" in app["relaxations"]
    secrun("stop", uuid)
    assert json.loads(secrun("status", "--format=json", uuid))["exit_code"] == 0
    secrun("rm", uuid)
