//! Command-line words: `--name value` pairs and switches, every word checked.

use std::ffi::OsString;
use std::os::unix::io::RawFd;

/// The words that are left to read.
pub struct Words {
    rest: std::vec::IntoIter<OsString>,
    name: String,
}

impl Words {
    /// Start with the words after the mode.
    pub fn new(words: Vec<OsString>) -> Self {
        Words { rest: words.into_iter(), name: String::new() }
    }

    /// The next option, or None at the end.
    pub fn option(&mut self) -> Result<Option<String>, String> {
        match self.rest.next().map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(word)) => {
                self.name = word.clone();
                Ok(Some(word))
            }
            Some(Err(word)) => Err(format!("{word:?} is not an option")),
        }
    }

    /// The value of the option, any bytes.
    pub fn os_value(&mut self) -> Result<OsString, String> {
        self.rest.next().ok_or_else(|| format!("{} needs a value", self.name))
    }

    /// The value of the option as text.
    pub fn value(&mut self) -> Result<String, String> {
        self.os_value()?.into_string().map_err(|word| format!("{}: {word:?} is not UTF-8", self.name))
    }

    /// The value of the option as a number.
    pub fn number<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let word = self.value()?;
        word.parse().map_err(|_| format!("{}: {word:?} is not a number in range", self.name))
    }

    /// The value of the option as an inherited descriptor.
    pub fn fd(&mut self) -> Result<RawFd, String> {
        match self.number()? {
            fd if fd >= 3 => Ok(fd),
            fd => Err(format!("{}: {fd} is not a descriptor from 3 on", self.name)),
        }
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> Vec<OsString> {
        self.rest.by_ref().collect()
    }

    /// The error for an option that the mode does not have.
    pub fn unknown<T>(&self) -> Result<T, String> {
        Err(format!("unknown option {:?}", self.name))
    }
}
