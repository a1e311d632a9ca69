//! The guest's init: loads modules, opens every disk by dm-verity, mounts, and becomes the systemd of the initramfs. It never goes on after a
//! failure: one line on the console, then the machine restarts, which ends it (QEMU is told so).

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{chroot, DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::io::AsRawFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use libc::{c_ulong, MS_BIND, MS_MOVE, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT};

use crate::dm;
use crate::sys::{self, guest};
use crate::table::{self, Group, Guest, Module, Verity, Volume};

/// The tree of stage1, in the initramfs.
const STAGE1: &str = "/stage1";
/// Where the root of stage1 is put together.
const ROOT: &str = "/sysroot";
const TPM: &str = "/dev/tpmrm0";
const SYSTEMD: &str = "/usr/lib/systemd/systemd";
/// A disk that has not come after this long will not come.
const DISK_TIME: Duration = Duration::from_secs(10);
const PLAIN: c_ulong = MS_NODEV | MS_NOSUID;

/// A result, or one line that says what failed.
type Told<T> = Result<T, String>;

fn told<T>(result: io::Result<T>, what: impl Display) -> Told<T> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// Run as the guest's init; returns only where there is no guest to start.
pub fn main() -> u8 {
    if std::process::id() != 1 || !Path::new(STAGE1).is_dir() {
        eprintln!("secrun-stage0 {}: this is the init of a guest", env!("CARGO_PKG_VERSION"));
        return 2;
    }
    match boot() {
        Ok(never) => match never {},
        Err(text) => eprintln!("secrun-stage0: {text}"),
    }
    guest::restart(&sys::standard(2));
    1
}

/// Times of the steps, which the relay tells the host.
#[derive(Default)]
struct Marks(String);

impl Marks {
    fn add(&mut self, name: &str) {
        self.0 += &format!("{name} {}\n", guest::since_boot().as_nanos());
    }
}

fn boot() -> Told<Infallible> {
    let mut marks = Marks::default();
    marks.add("stage0");
    for (kind, target, flags) in [
        ("proc", "/proc", PLAIN | MS_NOEXEC),
        ("sysfs", "/sys", PLAIN | MS_NOEXEC),
        ("devtmpfs", "/dev", MS_NOSUID),
    ] {
        folder(target)?;
        mount(kind, target, kind, flags, "")?;
    }
    let pod = table::pod(&read("/proc/cmdline")?, &table::salt(&read("/secrun/salt")?)?)?;
    let modules = table::modules(&read("/secrun/modules")?)?;
    if !guest::is_emulated() {
        // By the processor's wide registers, which an emulated one is no faster with: there it costs more than it saves.
        load(&modules, Group::Hash)?;
    }
    load(&modules, Group::Base)?;
    load_bus(&modules)?;
    marks.add("modules");
    let mut disks = Disks::open()?;
    mount_root()?;
    disks.mount("pod", "pod", &pod, &inside("/pod"), PLAIN | MS_NOEXEC)?;
    let guest = table::guest(&read(&inside("/pod/guest"))?)?;
    for group in [Group::Ext4, Group::Virtiofs, Group::Net, Group::Tpm] {
        if guest.needs(group) {
            load(&modules, group)?;
        }
    }
    if guest.tpm {
        // The pod's own TPM: what its apps may do with it is said by whether they see it, not by who they are.
        told(fs::set_permissions(TPM, Permissions::from_mode(0o666)), TPM)?;
    }
    if guest.networks > 0 {
        open_network()?;
    }
    close_kernel()?;
    disks.mount_apps(&guest)?;
    marks.add("verity");
    mount_volumes(&guest.volumes)?;
    if guest.scratch {
        mount(&disks.find("scratch")?, &inside("/rw"), "ext4", PLAIN, "")?;
    } else {
        tmpfs("/rw", 0, "mode=755")?;
    }
    tmpfs("/host", MS_NOEXEC, "mode=755")?;
    tmpfs("/run", 0, "mode=755")?;
    tmpfs("/tmp", 0, "mode=1777")?;
    identify(&guest)?;
    marks.add("systemd");
    folder(&inside("/run/secrun"))?;
    told(fs::write(inside("/run/secrun/marks"), marks.0), "/run/secrun/marks")?;
    enter()
}

/// Show the tree of stage1 where the root is put together. What the kernel has unpacked was measured with the initramfs, and
/// no disk can change it; a mount of its own because nothing can be pivoted away from the initramfs.
fn mount_root() -> Told<()> {
    folder(ROOT)?;
    mount(STAGE1, ROOT, "", MS_BIND, "")?;
    mount("", ROOT, "", MS_REMOUNT | MS_BIND | MS_RDONLY | PLAIN, "")
}

fn inside(path: &str) -> String {
    format!("{ROOT}{path}")
}

fn folder(path: &str) -> Told<()> {
    told(DirBuilder::new().recursive(true).mode(0o755).create(path), path)
}

fn read(path: &str) -> Told<String> {
    let mut text = String::new();
    let file =
        File::open(path).and_then(|file| file.take(table::MAX_TEXT as u64 + 1).read_to_string(&mut text));
    told(file, path)?;
    if text.len() > table::MAX_TEXT {
        return Err(format!("{path} has more than {} bytes", table::MAX_TEXT));
    }
    Ok(text)
}

fn mount(source: &str, target: &str, kind: &str, flags: c_ulong, data: &str) -> Told<()> {
    told(sys::mount(source, target, kind, flags, data), format_args!("mount of {source} at {target}"))
}

fn tmpfs(path: &str, flags: c_ulong, data: &str) -> Told<()> {
    mount("tmpfs", &inside(path), "tmpfs", PLAIN | flags, data)
}

// --- modules

fn load(modules: &[Module], wanted: Group) -> Told<()> {
    for Module { path, .. } in modules.iter().filter(|module| module.group == wanted) {
        match File::open(path).and_then(|file| guest::load_module(&file)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => (),
            result => told(result, format_args!("module {path}"))?,
        }
    }
    Ok(())
}

/// Load the drivers of the buses on which the machine has virtio devices.
fn load_bus(modules: &[Module]) -> Told<()> {
    let virtio =
        |device: &Path| fs::read(device.join("vendor")).map_or(false, |vendor| vendor == b"0x1af4\n");
    let mmio = |device: &Path| {
        let name = device.file_name().unwrap_or_default().to_string_lossy();
        // By ACPI, or by a device tree.
        name.starts_with("LNRO0005") || name.ends_with(".virtio_mmio")
    };
    let has = |folder: &str, is: &dyn Fn(&Path) -> bool| {
        let devices = fs::read_dir(folder).into_iter().flatten().flatten();
        devices.into_iter().any(|device| is(&device.path()))
    };
    let (pci, mmio) = (has("/sys/bus/pci/devices", &virtio), has("/sys/bus/platform/devices", &mmio));
    if pci {
        load(modules, Group::Pci)?;
    }
    if mmio {
        load(modules, Group::Mmio)?;
    }
    if pci || mmio {
        Ok(())
    } else {
        Err("the machine has no virtio devices, neither on PCI nor by MMIO".into())
    }
}

/// What an ordinary service needs of the network takes no privilege, as in a container: low ports, and echo requests
/// (ip(7), icmp(7)).
fn open_network() -> Told<()> {
    for (name, value) in [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")] {
        let path = format!("/proc/sys/net/ipv4/{name}");
        told(fs::write(&path, value), path)?;
    }
    Ok(())
}

/// From here on no code comes into the kernel.
fn close_kernel() -> Told<()> {
    for name in ["modules_disabled", "kexec_load_disabled"] {
        let path = format!("/proc/sys/kernel/{name}");
        match fs::write(&path, "1") {
            // A kernel without it has nothing to close.
            Err(error) if error.kind() == ErrorKind::NotFound => (),
            result => told(result, path)?,
        }
    }
    Ok(())
}

// --- disks

struct Disks {
    control: File,
    /// Serial number and name of each.
    known: Vec<(String, String)>,
}

impl Disks {
    fn open() -> Told<Self> {
        let control = File::options().read(true).write(true).open("/dev/mapper/control");
        Ok(Disks { control: told(control, "/dev/mapper/control")?, known: Vec::new() })
    }

    /// The path of the disk with this serial number, waited for.
    fn find(&mut self, serial: &str) -> Told<String> {
        let until = Instant::now() + DISK_TIME;
        loop {
            if let Some((_, name)) = self.known.iter().find(|(known, _)| known == serial) {
                let number = told(fs::read_to_string(format!("/sys/block/{name}/dev")), name)?;
                // The kernel's complaints name disks by number; the host reads this to know which one is meant.
                eprintln!("secrun-stage0: {} is disk {serial}", number.trim_end());
                return Ok(format!("/dev/{name}"));
            }
            if Instant::now() > until {
                let seen: Vec<_> = self.known.iter().map(|(known, _)| known.as_str()).collect();
                let seconds = DISK_TIME.as_secs();
                return Err(format!("no disk {serial} came in {seconds} s; there are {}", seen.join(", ")));
            }
            if !self.known.is_empty() {
                sleep(Duration::from_millis(2));
            }
            self.known = told(scan(), "/sys/block")?;
        }
    }

    fn mount(
        &mut self,
        serial: &str,
        name: &str,
        verity: &Verity,
        target: &str,
        flags: c_ulong,
    ) -> Told<()> {
        let disk = self.find(serial)?;
        let opened = dm::open(&self.control, name, verity, &disk);
        let mapped = told(opened, format_args!("dm-verity of {name} on disk {serial}"))?;
        folder(target)?;
        mount(&mapped, target, "erofs", MS_RDONLY | flags, "")
    }

    fn mount_apps(&mut self, guest: &Guest) -> Told<()> {
        tmpfs("/images", MS_NOEXEC, "mode=755,size=64k")?;
        for image in &guest.images {
            let target = inside(&format!("/images/{}", image.app));
            self.mount(&image.serial, &format!("image-{}", image.app), &image.verity, &target, MS_NODEV)?;
        }
        let sealed = MS_REMOUNT | MS_RDONLY | MS_NOEXEC;
        tmpfs("/images", sealed, "mode=755,size=64k")
    }
}

fn scan() -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for disk in fs::read_dir("/sys/block")? {
        let disk = disk?;
        // Not every block device has one; a disk on its way may not have it yet.
        if let Ok(serial) = fs::read_to_string(disk.path().join("serial")) {
            found.push((serial.trim_end().into(), disk.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(found)
}

// --- volumes and names

fn mount_volumes(volumes: &[Volume]) -> Told<()> {
    tmpfs("/volumes", MS_NOEXEC, "mode=755,size=64k")?;
    for volume in volumes {
        let target = inside(&format!("/volumes/{}-{}", volume.app, volume.index));
        let flags = PLAIN | if volume.read_only { MS_RDONLY } else { 0 };
        match &volume.file {
            None => {
                folder(&target)?;
                mount(&volume.tag, &target, "virtiofs", flags, "")?;
            }
            Some(file) => {
                told(bind_file(&volume.tag, file, &target, flags), format_args!("volume {target}"))?
            }
        }
    }
    Ok(())
}

/// Bind one file of a share; a link in its place is not followed.
fn bind_file(tag: &str, name: &str, target: &str, flags: c_ulong) -> io::Result<()> {
    let share = format!("{target}.share");
    DirBuilder::new().mode(0o700).create(&share)?;
    sys::mount(tag, &share, "virtiofs", flags, "")?;
    let mut open = File::options();
    open.read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW);
    let file = open.open(format!("{share}/{name}"))?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() || kind.is_symlink() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not a file"));
    }
    File::create(target)?;
    sys::mount(&format!("/proc/self/fd/{}", file.as_raw_fd()), target, "", MS_BIND, "")?;
    sys::mount("", target, "", MS_REMOUNT | MS_BIND | flags, "")?;
    guest::detach(&share)?;
    fs::remove_dir(share)
}

/// Give the machine the pod's names.
fn identify(guest: &Guest) -> Told<()> {
    told(guest::set_hostname(&guest.hostname), "host name")?;
    told(guest::loopback_up(), "interface lo")?;
    let (id, target) = (inside("/run/machine-id"), inside("/etc/machine-id"));
    told(fs::write(&id, guest.uuid.replace('-', "") + "\n"), &id)?;
    mount(&id, &target, "", MS_BIND, "")?;
    mount("", &target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | PLAIN | MS_NOEXEC, "")
}

/// Make stage1 the root, free the initramfs, and become systemd.
fn enter() -> Told<Infallible> {
    for path in ["/proc", "/sys", "/dev"] {
        mount(path, &inside(path), "", MS_MOVE, "")?;
    }
    // Nobody after this sets anything there; systemd then neither looks for devices nor listens for them. Its control groups
    // are a mount of their own.
    mount("", &inside("/sys"), "", MS_REMOUNT | MS_BIND | MS_RDONLY | PLAIN | MS_NOEXEC, "")?;
    told(fs::remove_dir_all("/secrun").and_then(|()| fs::remove_file("/init")), "initramfs")?;
    told(std::env::set_current_dir(ROOT), ROOT)?;
    // The root file system of the kernel itself cannot be pivoted away (Documentation/filesystems/ramfs-rootfs-initramfs.rst).
    mount(".", "/", "", MS_MOVE, "")?;
    told(chroot(".").and_then(|()| std::env::set_current_dir("/")), "new root")?;
    std::env::set_var("SYSTEMD_UNIT_PATH", "/pod/units");
    let words = ["--unit=pod.target", "--log-level=err", "--log-target=console", "--show-status=no"];
    let words: Vec<OsString> = [SYSTEMD].iter().chain(&words).map(OsString::from).collect();
    Err(format!("{SYSTEMD}: {}", sys::execute(SYSTEMD.as_bytes(), &words)))
}
