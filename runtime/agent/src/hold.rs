//! The first program of a command on a terminal: it waits until the terminal has its size, then becomes the command.
//!
//! crun sends the terminal while the command is already on its way, so that without this a command could ask for
//! the size before anybody has set it. crun finds the program by its descriptor, for no image holds it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use crate::sys;

/// The end of this pipe's input is the sign to go on.
const GATE: i32 = 4;

/// Run the mode; it returns only if the command cannot be executed.
pub fn main(words: Vec<OsString>) -> u8 {
    // In crun's words, because the shim looks for them.
    eprintln!("exec: {}", run(&words).unwrap_or_else(|error| error));
    1
}

fn run(words: &[OsString]) -> io::Result<io::Error> {
    File::from(sys::inherited(GATE)?).read_to_end(&mut Vec::new())?;
    sys::keep_only(&[])?;
    let program = match words.first() {
        Some(program) => program.as_bytes(),
        None => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(candidates(program, path.as_bytes())
        .iter()
        .map(|place| sys::execute(place, words))
        // A folder without the program says less than one with a program that may not run.
        .max_by_key(|error| error.kind() != io::ErrorKind::NotFound)
        .unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

fn candidates(program: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    path.split(|byte| *byte == b':').map(|folder| [folder, b"/", program].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_in_the_path_and_a_path_is_taken() {
        assert_eq!(candidates(b"sh", b"/bin:/usr/bin"), [b"/bin/sh".to_vec(), b"/usr/bin/sh".to_vec()]);
        assert_eq!(candidates(b"./sh", b"/bin"), [b"./sh".to_vec()]);
    }
}
