//! The keys that detach a terminal: a sequence in what is typed, which never reaches the app.

/// Longest sequence; what is held back of it must fit beside any credit.
pub const MAX_KEYS: usize = 16;

/// Looks for a sequence of bytes in what is typed.
pub struct Keys {
    wanted: Vec<u8>,
    /// So many bytes of the sequence have been typed, and are held back.
    held: usize,
}

impl Keys {
    /// Read `16,17`: the bytes of the sequence as decimal numbers.
    pub fn parse(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u8>, _> = text.split(',').map(str::parse).collect();
        match numbers {
            Ok(wanted) if wanted.len() <= MAX_KEYS => Ok(Keys { wanted, held: 0 }),
            _ => Err(format!("--detach-keys: {text:?} is not 1 to {MAX_KEYS} numbers of bytes")),
        }
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Take typed bytes and append what goes on to `out`; true, with the rest left unread, once the sequence is whole.
    pub fn take(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for byte in typed {
            while self.wanted[self.held] != *byte && self.held > 0 {
                let keep = self.overlap();
                out.extend_from_slice(&self.wanted[..self.held - keep]);
                self.held = keep;
            }
            match self.wanted[self.held] == *byte {
                true => self.held += 1,
                false => out.push(*byte),
            }
            if self.held == self.wanted.len() {
                self.held = 0;
                return true;
            }
        }
        false
    }

    /// Nothing more is typed: what was held back goes on.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        self.wanted[..held].to_vec()
    }

    /// How much of the end of what is held begins the sequence anew.
    fn overlap(&self) -> usize {
        let held = &self.wanted[..self.held];
        (0..self.held).rev().find(|keep| held.ends_with(&self.wanted[..*keep])).unwrap_or(0)
    }
}
