"""The one place that knows where secrun keeps its files (design, section 6)."""

from pathlib import Path

from secrun.record import row

DEFAULT_ROOT = Path("/var/lib/secrun")
DEFAULT_RUN_ROOT = Path("/run/secrun")


@row
class Layout:
    """All paths below one `--root` (survives a reboot) and one `--run-root` (does not)."""

    root: Path = DEFAULT_ROOT
    run_root: Path = DEFAULT_RUN_ROOT
    keys: Path | None = None
    """The key ring, if it is not this root's own."""

    @property
    def images(self) -> Path:
        """OCI image layout that holds every fetched blob."""
        return self.root / "images"

    @property
    def members(self) -> Path:
        """Stores of ordinary users, a folder named by its number for each."""
        return self.root / "members"

    def of_member(self, uid: int) -> "Layout":
        """Return the paths of an ordinary user's own store; which keys count is still the host's to say."""
        own = self.members / str(uid)
        return Layout(root=own, run_root=own / "run", keys=self.trust)

    @property
    def facts(self) -> Path:
        """What is known of each image: one record per manifest."""
        return self.root / "facts"

    @property
    def rootfs(self) -> Path:
        """Rendered rootfs images: `<hex>.erofs` beside `<hex>.json`."""
        return self.root / "rootfs"

    @property
    def stage1(self) -> Path:
        """Built stage1 images, one folder each."""
        return self.root / "stage1"

    @property
    def pods(self) -> Path:
        """One folder per pod state."""
        return self.root / "pods"

    @property
    def volumes(self) -> Path:
        """Named volumes."""
        return self.root / "volumes"

    @property
    def trust(self) -> Path:
        """Keys by prefix."""
        return self.keys or self.root / "trust"

    @property
    def measure(self) -> Path:
        """Event logs, who this host is to a verifier, and what ran unmeasured."""
        return self.root / "measure"

    @property
    def audit(self) -> Path:
        """The audit log over all boots: its tree, its key, its signed heads."""
        return self.root / "audit"

    @property
    def accounts(self) -> Path:
        """What is kept of each pod that has ended."""
        return self.audit / "accounts"

    @property
    def tpm(self) -> Path:
        """State of the software TPM, only where the host has none."""
        return self.root / "tpm"

    @property
    def tpm_run(self) -> Path:
        """Sockets of the software TPM."""
        return self.run_root / "tpm"

    @property
    def leases(self) -> Path:
        """Addresses that the built-in network has given out."""
        return self.run_root / "network"

    @property
    def locks(self) -> Path:
        """Lock files that outlive what they guard."""
        return self.run_root / "locks"

    @property
    def mounts(self) -> Path:
        """Images that are mounted to be looked at, a folder each."""
        return self.run_root / "mounts"

    @property
    def categories(self) -> Path:
        """SELinux categories of live pods: a locked file each."""
        return self.run_root / "categories"

    @property
    def scratch(self) -> Path:
        """Unfinished downloads and renderings; on the same file system as their targets."""
        return self.root / "scratch"
