//! What the caller of a pod with a terminal waits for: it passes signals on to the waiter, its child, which the
//! caller's terminal obeys as much; and it ends when the waiter ends, or when the terminal is detached from the pod.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};

use crate::args::Words;
use crate::sys::terminal::{look_at, stop_here, Turn};
use crate::sys::{self, Poller};

/// What the waiter says when the pod runs on without a terminal.
pub const DETACHED: u8 = b'd';

#[derive(Clone, Copy)]
enum Token {
    Signal,
    Link,
}

/// Run the mode; returns the pod's exit status, or 0 once the terminal is detached.
pub fn main(words: Vec<OsString>) -> u8 {
    match run(Words::new(words)) {
        Ok(code) => code,
        Err(text) => {
            eprintln!("secrun: {text}");
            125
        }
    }
}

fn run(mut words: Words) -> Result<u8, String> {
    let (mut child, mut link, mut pod) = (0, None, String::new());
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--child" => child = words.number()?,
            "--link-fd" => link = Some(words.fd()?),
            "--pod" => pod = words.value()?,
            _ => return words.unknown(),
        }
    }
    let text = |error: std::io::Error| error.to_string();
    let link = File::from(sys::inherited(link.ok_or("--link-fd is needed")?).map_err(text)?);
    sys::keep_only(&[std::os::unix::io::AsRawFd::as_raw_fd(&link)]).map_err(text)?;
    sys::set_nonblocking(&link).map_err(text)?;
    use libc::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
    let numbers = [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH];
    let signals = sys::signals(&numbers).map_err(text)?;
    let mut open = true;
    loop {
        // It may have come to its end, or to a stop, before its signal was waited for.
        match look_at(child).map_err(text)? {
            Turn::Ended(status) if !detached(&link) => return Ok(status.code),
            Turn::Ended(_) => return Ok(tell(&pod)),
            Turn::Stopped => {
                // The shell is to see that the job has stopped; whoever continues it continues both.
                stop_here();
                sys::kill(child, libc::SIGCONT).map_err(text)?;
                continue;
            }
            Turn::Same => (),
        }
        let mut poller = Poller::new();
        poller.add(&signals, libc::POLLIN, Token::Signal);
        poller.add(&link, if open { libc::POLLIN } else { 0 }, Token::Link);
        for (token, _) in poller.wait(None).map_err(text)? {
            match token {
                Token::Signal => {
                    while let Some(number) = sys::next_signal(&signals) {
                        if number != SIGCHLD {
                            // A waiter that has gone is seen by its end.
                            let _ = (&link).write(&[number as u8]);
                        }
                    }
                }
                Token::Link if detached(&link) => return Ok(tell(&pod)),
                Token::Link => open = false,
            }
        }
    }
}

/// Whether the waiter has said so; nothing else is said, and an end means that it ends.
fn detached(mut link: &File) -> bool {
    let mut word = [0];
    loop {
        match link.read(&mut word) {
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            Ok(count) => return count == 1 && word[0] == DETACHED,
            Err(_) => return false,
        }
    }
}

fn tell(pod: &str) -> u8 {
    eprintln!("\nsecrun: detached; pod {pod} runs on");
    0
}
