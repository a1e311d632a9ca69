//! What a program needs before it can run: the loader of an ELF file, the interpreter of a script.

/// Program headers that are looked at; compilers write about a dozen.
const MAX_HEADERS: u64 = 64;
/// Longest interpreter path that is believed (PATH_MAX).
const MAX_PATH: u64 = 4096;
/// Bytes of a script's first line that the kernel reads (BINPRM_BUF_SIZE).
const SCRIPT_HEAD: usize = 256;
const PT_INTERP: u64 = 3;

/// What the kernel would do with a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Program {
    /// An ELF program and its loader, if it is dynamic.
    Elf {
        /// e_machine.
        machine: u16,
        /// PT_INTERP.
        interpreter: Option<Vec<u8>>,
    },
    /// A script and what its first line names.
    Script(Vec<u8>),
    /// Nothing the kernel runs by itself, or damaged.
    Other,
}

/// Read part of a file: fills the buffer from an offset, returns how much was there.
pub type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> usize + 'a;

/// Classify a file by its first bytes; every offset and size in it is taken for hostile.
pub fn inspect(read: &ReadAt) -> Program {
    let mut head = [0; SCRIPT_HEAD];
    let count = read(0, &mut head).min(SCRIPT_HEAD);
    let head = &head[..count];
    if let Some(line) = head.strip_prefix(b"#!") {
        return script(line);
    }
    elf(head, read).unwrap_or(Program::Other)
}

fn script(line: &[u8]) -> Program {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let word = line.iter().skip_while(|byte| blank(byte)).copied();
    let word: Vec<u8> = word.take_while(|byte| !blank(byte) && *byte != b'\n' && *byte != 0).collect();
    if word.is_empty() {
        return Program::Other;
    }
    Program::Script(word)
}

/// Numbers of an ELF file, which says itself how they are written.
struct Layout {
    wide: bool,
    big: bool,
}

impl Layout {
    fn number(&self, bytes: &[u8], offset: usize, size: usize) -> Option<u64> {
        let field = bytes.get(offset..offset + size)?;
        let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.big { field.iter().fold(0, fold) } else { field.iter().rev().fold(0, fold) })
    }

    fn pick(&self, bytes: &[u8], wide: (usize, usize), narrow: (usize, usize)) -> Option<u64> {
        let (offset, size) = if self.wide { wide } else { narrow };
        self.number(bytes, offset, size)
    }
}

fn elf(head: &[u8], read: &ReadAt) -> Option<Program> {
    let layout = match head.get(..6)? {
        [0x7f, b'E', b'L', b'F', class @ 1..=2, data @ 1..=2] => {
            Layout { wide: *class == 2, big: *data == 2 }
        }
        _ => return None,
    };
    let machine = layout.number(head, 18, 2)? as u16;
    let table = layout.pick(head, (32, 8), (28, 4))?;
    let entry_size = layout.pick(head, (54, 2), (42, 2))?;
    let count = layout.pick(head, (56, 2), (44, 2))?;
    if entry_size != if layout.wide { 56 } else { 32 } {
        return None;
    }
    for index in 0..count.min(MAX_HEADERS) {
        let mut entry = [0; 56];
        let entry = &mut entry[..entry_size as usize];
        if read(table.checked_add(index * entry_size)?, entry) < entry.len() {
            return None;
        }
        if layout.number(entry, 0, 4)? == PT_INTERP {
            let offset = layout.pick(entry, (8, 8), (4, 4))?;
            let size = layout.pick(entry, (32, 8), (16, 4))?;
            let interpreter = Some(path_at(offset, size, read)?);
            return Some(Program::Elf { machine, interpreter });
        }
    }
    Some(Program::Elf { machine, interpreter: None })
}

fn path_at(offset: u64, size: u64, read: &ReadAt) -> Option<Vec<u8>> {
    if size == 0 || size > MAX_PATH {
        return None;
    }
    let mut path = vec![0; size as usize];
    if read(offset, &mut path) < path.len() || path.pop() != Some(0) || path.contains(&0) || path.is_empty()
    {
        return None;
    }
    Some(path)
}
