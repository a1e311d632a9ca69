//! What a guest's apps keep secret: files in its memory, whose bytes come over the line to the host and are on no disk.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::sys;
use crate::table::Secret;

/// Where the runtime finds them to bind them into the apps: below /run, which is in memory.
pub const FOLDER: &str = "/run/secrets";

/// Write each secret of the table; an error if the host has told another number of them, or one without a byte.
pub fn keep(folder: &Path, wanted: &[Secret], mut told: BTreeMap<u16, Vec<u8>>) -> Result<(), String> {
    let numbers = 0..wanted.len() as u16;
    if !told.keys().copied().eq(numbers) || told.values().any(Vec::is_empty) {
        return Err(format!("the host tells {} secrets, the pod has {}", told.len(), wanted.len()));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let failed = |error: io::Error| format!("secrets: {error}");
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    for (secret, bytes) in wanted.iter().zip(told.values_mut()) {
        write(&folder.join(format!("{}-{}", secret.app, secret.index)), secret, bytes).map_err(failed)?;
        bytes.fill(0);
    }
    Ok(())
}

/// The owner before the mode, so that nobody else can ever open it.
fn write(path: &Path, secret: &Secret, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    sys::change_owner(path, secret.owner)?;
    fs::set_permissions(path, fs::Permissions::from_mode(secret.mode))
}
