//! The worker's own epoll (kqueue elsewhere): where busy connections wait and where the
//! worker sleeps.
//!
//! Registration is edge-triggered: an event says that something changed since the last
//! one, so a connection is asked again only after the kernel said "no more". That saves
//! a system call whenever interest changes, and a descriptor that somebody else closed
//! while a duplicate lives on, which epoll would report for ever, reports once.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::inbox::Key;

// A token carries slot and generation.
const _: () = assert!(usize::BITS >= 64, "the reactor needs a 64-bit system");

/// Events that one wait may bring.
pub(crate) const MAX_EVENTS: usize = 512;
const WAKER: Token = Token(usize::MAX);

/// What the kernel says about a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// A read will not block.
    pub readable: bool,
    /// A write will not block.
    pub writable: bool,
    /// The peer will send no more, or sent something urgent: a short read does not mean
    /// that nothing is left.
    pub hung_up: bool,
    /// Neither direction works any more.
    pub dead: bool,
}

impl Readiness {
    /// There may be something to read.
    pub const READ: Self = Self {
        readable: true,
        writable: false,
        hung_up: false,
        dead: false,
    };
    /// There may be room to write.
    pub const WRITE: Self = Self {
        readable: false,
        writable: true,
        hung_up: false,
        dead: false,
    };
    /// Anything may have happened: ask the kernel.
    pub const ANY: Self = Self {
        readable: true,
        writable: true,
        hung_up: true,
        dead: false,
    };
}

pub(crate) struct Poller {
    poll: Poll,
    events: Events,
}

impl Poller {
    pub(crate) fn new() -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let events = Events::with_capacity(MAX_EVENTS);
        Ok((Self { poll, events }, waker))
    }

    /// Watches `descriptor` for data, hang-up and, if `write`, for room to write. What is
    /// true already is reported by the next wait.
    pub(crate) fn add(&self, descriptor: &impl AsFd, key: Key, write: bool) -> io::Result<()> {
        let number = descriptor.as_fd().as_raw_fd();
        let registry = self.poll.registry();
        let source = &mut SourceFd(&number);
        match registry.register(source, token(key), interest(write)) {
            // epoll knows a number together with what it names. Somebody closed a
            // descriptor of ours while a duplicate lived on, and now the same socket
            // came in again under the same number: the entry left behind is for us.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                registry.reregister(source, token(key), interest(write))
            }
            other => other,
        }
    }

    /// Watches for room to write as well.
    pub(crate) fn add_write(&self, descriptor: &impl AsFd, key: Key) -> io::Result<()> {
        let number = descriptor.as_fd().as_raw_fd();
        let registry = self.poll.registry();
        registry.reregister(&mut SourceFd(&number), token(key), interest(true))
    }

    /// Stops watching.
    pub(crate) fn remove(&self, descriptor: &impl AsFd) -> io::Result<()> {
        let number = descriptor.as_fd().as_raw_fd();
        self.poll.registry().deregister(&mut SourceFd(&number))
    }

    /// Waits for events; a signal counts as an empty answer.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            other => other,
        }
    }

    /// What the last wait brought.
    pub(crate) fn events(&self) -> impl Iterator<Item = (Key, Readiness)> {
        self.events
            .iter()
            .filter(|event| event.token() != WAKER)
            .map(|event| {
                // A pipe or terminal that hung up with nothing left reports only that.
                let hung_up = event.is_read_closed() || event.is_error();
                let readiness = Readiness {
                    readable: event.is_readable() || hung_up,
                    writable: event.is_writable() || event.is_error(),
                    hung_up: hung_up || event.is_priority(),
                    dead: event.is_write_closed() || event.is_error(),
                };
                (key(event.token()), readiness)
            })
    }
}

const fn interest(write: bool) -> Interest {
    if write {
        READ.add(Interest::WRITABLE)
    } else {
        READ
    }
}

/// TCP ends a read early at a byte out of band, so that has to be known.
#[cfg(any(target_os = "linux", target_os = "android"))]
const READ: Interest = Interest::READABLE.add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const READ: Interest = Interest::READABLE;

const fn token(key: Key) -> Token {
    Token((key.generation as usize) << 32 | key.slot as usize)
}

#[allow(clippy::cast_possible_truncation)]
const fn key(token: Token) -> Key {
    Key {
        slot: token.0 as u32,
        generation: (token.0 >> 32) as u32,
    }
}
