//! What tells a guest what to open: /secrun/salt, /secrun/modules, the kernel's command line, /pod/guest. Pure and strict:
//! a line that is not understood stops the boot.

/// Largest text of any of them; /pod/guest comes nearest to it.
pub const MAX_TEXT: usize = 65_536;
/// Most blocks of one image: 16 TiB, so that sizes in sectors never overflow.
const MAX_BLOCKS: u64 = 1 << 32;
/// Interfaces of one pod.
const MAX_NETWORKS: u64 = 16;
/// Secrets of one pod.
const MAX_SECRETS: usize = 1024;
/// Ids of one pod.
const MAX_ID: u64 = 65_535;
/// Bytes of all secrets of a pod together, as systemd has it for a service (systemd.exec(5), credentials).
pub const MAX_SECRET_BYTES: usize = 1 << 20;
/// Where modules lie in the initramfs.
const MODULES: &str = "/secrun/modules.d/";

/// A dm-verity target: sha256, blocks of 4096 bytes, the tree behind the data.
#[derive(Debug, PartialEq, Eq, Clone)]
#[allow(missing_docs)]
pub struct Verity {
    pub blocks: u64,
    pub root: String,
    pub salt: String,
}

impl Verity {
    fn parse(blocks: &str, root: &str, salt: &str) -> Option<Self> {
        if root.len() != 64 || !hex(root) || !is_salt(salt) {
            return None;
        }
        let blocks = number(blocks).filter(|count| (2..=MAX_BLOCKS).contains(count))?;
        Some(Verity { blocks, root: root.into(), salt: salt.into() })
    }

    /// The parameters of the kernel's target (Documentation/admin-guide/device-mapper/verity.rst) on `device`; the first
    /// block after the data holds veritysetup's superblock.
    pub fn parameters(&self, device: &str) -> String {
        let Verity { blocks, root, salt } = self;
        format!(
            "1 {device} {device} 4096 4096 {blocks} {} sha256 {root} {salt} 1 panic_on_corruption",
            blocks + 1
        )
    }
}

/// When a module is needed.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
#[allow(missing_docs)]
pub enum Group {
    Hash,
    Base,
    Pci,
    Mmio,
    Ext4,
    Virtiofs,
    Net,
    Tpm,
}

/// A kernel module of the initramfs.
#[derive(Debug, PartialEq, Eq, Clone)]
#[allow(missing_docs)]
pub struct Module {
    pub group: Group,
    pub path: String,
}

/// A read-only image of an app.
#[derive(Debug, PartialEq, Eq, Clone)]
#[allow(missing_docs)]
pub struct Image {
    pub app: String,
    pub serial: String,
    pub verity: Verity,
}

/// A folder that the host shares, or one file in it.
#[derive(Debug, PartialEq, Eq, Clone)]
#[allow(missing_docs)]
pub struct Volume {
    pub app: String,
    pub index: u16,
    pub tag: String,
    pub read_only: bool,
    /// A file in the shared folder; the folder itself if there is none.
    pub file: Option<String>,
}

/// A secret of an app, whose bytes the host tells when the pod starts.
#[derive(Debug, PartialEq, Eq, Clone)]
#[allow(missing_docs)]
pub struct Secret {
    pub app: String,
    pub index: u16,
    pub owner: (u32, u32),
    pub mode: u32,
}

/// The pod's own part: /pod/guest.
#[derive(Debug, PartialEq, Eq, Clone, Default)]
#[allow(missing_docs)]
pub struct Guest {
    pub hostname: String,
    pub uuid: String,
    pub images: Vec<Image>,
    pub volumes: Vec<Volume>,
    pub scratch: bool,
    pub tpm: bool,
    /// How many interfaces the machine has; what they are is known when the pod starts.
    pub networks: u8,
    /// In the order in which the host numbers them.
    pub secrets: Vec<Secret>,
}

impl Guest {
    /// Whether its modules have to be loaded.
    pub fn needs(&self, group: Group) -> bool {
        match group {
            Group::Ext4 => self.scratch,
            Group::Virtiofs => !self.volumes.is_empty(),
            Group::Tpm => self.tpm,
            Group::Net => self.networks > 0,
            _ => false,
        }
    }
}

fn hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_salt(text: &str) -> bool {
    text.len() <= 512 && text.len() % 2 == 0 && !text.is_empty() && hex(text)
}

/// A decimal number in its one spelling.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|value: &u64| value.to_string() == text)
}

/// Letters, digits, '-', '_' and '.', not beginning with '.' or '-'.
fn name(text: &str, longest: usize) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let begins = text.bytes().next().map_or(false, |byte| !b".-".contains(&byte));
    (begins && text.len() <= longest && text.bytes().all(plain)).then(|| text.into())
}

fn uuid(text: &str) -> Option<String> {
    let sizes: Vec<usize> = text.split('-').map(str::len).collect();
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    (sizes == [8, 4, 4, 4, 12] && text.bytes().all(digit)).then(|| text.into())
}

/// Each line split at single spaces; the text must end with a newline.
fn lines<'a>(what: &str, text: &'a str) -> Result<Vec<Vec<&'a str>>, String> {
    let body = text.strip_suffix('\n').ok_or_else(|| format!("{what} does not end with a line"))?;
    Ok(body.split('\n').map(|line| line.split(' ').collect()).collect())
}

fn bad<T>(what: &str, number: usize, words: &[&str]) -> Result<T, String> {
    Err(format!("{what}, line {}: cannot use {:?}", number + 1, words.join(" ")))
}

/// /secrun/salt: one line, the salt of every image.
pub fn salt(text: &str) -> Result<String, String> {
    let salt = text.strip_suffix('\n').filter(|salt| is_salt(salt));
    salt.map(str::to_string).ok_or_else(|| "/secrun/salt is not one line of a salt".into())
}

/// The word `secrun.pod=DATA_BLOCKS:ROOT` of the kernel's command line; every image of secrun has the same salt.
pub fn pod(command_line: &str, salt: &str) -> Result<Verity, String> {
    let mut values =
        command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("secrun.pod="));
    match (values.next(), values.next()) {
        (Some(value), None) => value
            .split_once(':')
            .and_then(|(blocks, root)| Verity::parse(blocks, root, salt))
            .ok_or_else(|| format!("secrun.pod={value:?} is not DATA_BLOCKS:ROOT")),
        (None, _) => Err("the kernel's command line has no secrun.pod=".into()),
        _ => Err("the kernel's command line has secrun.pod= twice".into()),
    }
}

/// /secrun/modules: lines `GROUP PATH` in load order.
pub fn modules(text: &str) -> Result<Vec<Module>, String> {
    let one = |(number, words): (usize, Vec<&str>)| {
        let group = match words[0] {
            "hash" => Some(Group::Hash),
            "base" => Some(Group::Base),
            "pci" => Some(Group::Pci),
            "mmio" => Some(Group::Mmio),
            "ext4" => Some(Group::Ext4),
            "virtiofs" => Some(Group::Virtiofs),
            "net" => Some(Group::Net),
            "tpm" => Some(Group::Tpm),
            _ => None,
        };
        match (group, &words[1..]) {
            (Some(group), [path])
                if path.strip_prefix(MODULES).and_then(|file| name(file, 128)).is_some() =>
            {
                Ok(Module { group, path: (*path).into() })
            }
            _ => bad("/secrun/modules", number, &words),
        }
    };
    lines("/secrun/modules", text)?.into_iter().enumerate().map(one).collect()
}

/// /pod/guest: what this pod consists of.
pub fn guest(text: &str) -> Result<Guest, String> {
    let mut guest = Guest::default();
    let mut lines = lines("/pod/guest", text)?.into_iter().enumerate();
    match lines.next() {
        Some((_, words)) if words == ["secrun-guest", "1"] => (),
        _ => return Err("/pod/guest does not begin with the line secrun-guest 1".into()),
    }
    for (number, words) in lines {
        if guest_line(&mut guest, &words).is_none() {
            return bad("/pod/guest", number, &words);
        }
    }
    if guest.hostname.is_empty() || guest.uuid.is_empty() || guest.images.is_empty() {
        return Err("/pod/guest lacks hostname, uuid or image".into());
    }
    Ok(guest)
}

fn secret(app: &str, index: &str, owner: (&str, &str), mode: &str) -> Option<Secret> {
    let id = |text: &str| number(text).filter(|id| *id <= MAX_ID).map(|id| id as u32);
    let index = number(index).and_then(|index| u16::try_from(index).ok())?;
    let bits = u32::from_str_radix(mode, 8).ok().filter(|bits| *bits <= 0o777)?;
    let owner = (id(owner.0)?, id(owner.1)?);
    (format!("{bits:o}") == mode).then_some(())?;
    Some(Secret { app: name(app, 63)?, index, owner, mode: bits })
}

/// Take one line in; None if it cannot be used, or is there twice.
fn guest_line(guest: &mut Guest, words: &[&str]) -> Option<()> {
    match *words {
        ["hostname", host] if guest.hostname.is_empty() => guest.hostname = name(host, 64)?,
        ["uuid", id] if guest.uuid.is_empty() => guest.uuid = uuid(id)?,
        ["image", app, serial, blocks, root, salt] => {
            let verity = Verity::parse(blocks, root, salt)?;
            // 20 bytes: the longest serial number of a virtio disk.
            let image = Image { app: name(app, 63)?, serial: name(serial, 20)?, verity };
            let taken = |other: &Image| other.app == image.app || other.serial == image.serial;
            if guest.images.iter().any(taken) {
                return None;
            }
            guest.images.push(image);
        }
        ["volume", app, index, tag, mode @ ("ro" | "rw"), file] => {
            let index = number(index).and_then(|index| u16::try_from(index).ok())?;
            let file = if file == "." { None } else { Some(name(file, 255)?) };
            // 36 bytes: the longest tag of virtiofs (virtio 1.2, 5.11.4).
            let (app, tag) = (name(app, 63)?, name(tag, 36)?);
            if guest.volumes.iter().any(|other| other.app == app && other.index == index) {
                return None;
            }
            guest.volumes.push(Volume { app, index, tag, read_only: mode == "ro", file });
        }
        ["secret", app, index, uid, gid, mode] if guest.secrets.len() < MAX_SECRETS => {
            let secret = secret(app, index, (uid, gid), mode)?;
            let taken = |other: &Secret| other.app == secret.app && other.index == secret.index;
            if guest.secrets.iter().any(taken) {
                return None;
            }
            guest.secrets.push(secret);
        }
        ["scratch"] if !guest.scratch => guest.scratch = true,
        ["tpm"] if !guest.tpm => guest.tpm = true,
        ["networks", count] if guest.networks == 0 => {
            guest.networks = number(count).filter(|count| (1..=MAX_NETWORKS).contains(count))? as u8;
        }
        _ => return None,
    }
    Some(())
}
