//! A simulated kernel's side of one descriptor: what has come in, how much it takes, what was
//! sent.
//!
//! Towards the engine it does what Linux does. What the peer sent before it ended or reset the
//! connection is read first, but an error of a datagram socket goes before. The error is told
//! once, to whichever call comes next; after it a stream ends and a write is EPIPE. Whoever watches is told of a change once, with
//! all that holds then, and at the beginning of the watch of what holds already: that is
//! epoll(7), edge-triggered. What was sent in one piece is read in one piece, so that who writes
//! the script says where a stream is torn.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::RawFd;

use nix::errno::Errno;
use parking_lot::Mutex;

use crate::descriptor::Received;
use crate::poller::Readiness;

/// The longest datagram that UDP carries over IPv4.
const MAX_DATAGRAM_BYTES: usize = 65_507;

/// One descriptor's wire.
pub(crate) struct Wire {
    datagrams: bool,
    script: Mutex<Script>,
}

/// A fragment of a stream, or a datagram, with its sender if that has a name.
type Fragment = (Vec<u8>, Option<SocketAddr>);

struct Script {
    incoming: VecDeque<Fragment>,
    /// The peer sends no more.
    ended: bool,
    /// The connection is reset.
    broken: bool,
    /// The errno of that, until it is told.
    failure: Option<Errno>,
    /// Bytes that are taken; `None`: as many as come.
    room: Option<usize>,
    /// What was taken, by the call.
    sent: Vec<Vec<u8>>,
    watch: Watch,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    Nobody,
    Data,
    DataAndRoom,
}

impl Script {
    /// What epoll would report now.
    fn readiness(&self) -> Readiness {
        if self.watch == Watch::Nobody {
            return Readiness::default();
        }
        Readiness {
            readable: !self.incoming.is_empty() || self.ended || self.broken,
            writable: self.broken || (self.watch == Watch::DataAndRoom && self.room != Some(0)),
            hung_up: self.ended || self.broken,
            dead: self.broken,
        }
    }

    /// The error of a reset.
    fn check(&mut self) -> nix::Result<()> {
        match self.failure.take() {
            Some(errno) => Err(errno),
            None => Ok(()),
        }
    }
}

impl Wire {
    pub(crate) const fn new(datagrams: bool) -> Self {
        Self {
            datagrams,
            script: Mutex::new(Script {
                incoming: VecDeque::new(),
                ended: false,
                broken: false,
                failure: None,
                room: None,
                sent: Vec::new(),
                watch: Watch::Nobody,
            }),
        }
    }

    /// What recv(2) brings, and the sender of a datagram.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> nix::Result<(Received, Option<SocketAddr>)> {
        let mut script = self.script.lock();
        if self.datagrams {
            script.check()?;
        }
        let Some((fragment, sender)) = script.incoming.front_mut() else {
            script.check()?;
            let over = script.ended || script.broken;
            let nothing = if over {
                Received::Eof
            } else {
                Received::WouldBlock
            };
            return Ok((nothing, None));
        };
        let (length, sender) = (fragment.len().min(buffer.len()), *sender);
        buffer[..length].copy_from_slice(&fragment[..length]);
        if self.datagrams {
            script.incoming.pop_front();
            return Ok((Received::Datagram { length }, sender));
        }
        fragment.drain(..length);
        if fragment.is_empty() {
            script.incoming.pop_front();
        }
        let drained = script.incoming.is_empty();
        Ok((Received::Data { length, drained }, sender))
    }

    /// What send(2) takes.
    #[cold]
    pub(crate) fn send(&self, bytes: &[u8]) -> nix::Result<usize> {
        let mut script = self.script.lock();
        script.check()?;
        if script.broken {
            return Err(Errno::EPIPE);
        }
        if self.datagrams && bytes.len() > MAX_DATAGRAM_BYTES {
            return Err(Errno::EMSGSIZE);
        }
        let room = script.room.unwrap_or(usize::MAX);
        let length = room.min(bytes.len());
        if room == 0 || (self.datagrams && length < bytes.len()) {
            return Err(Errno::EAGAIN);
        }
        script.room = script.room.map(|room| room - length);
        script.sent.push(bytes[..length].to_vec());
        Ok(length)
    }

    /// Whether there is nothing to read and never will be.
    pub(crate) fn peer_is_gone(&self) -> bool {
        let script = self.script.lock();
        script.incoming.is_empty() && (script.ended || script.broken) && !self.datagrams
    }

    /// Begins to watch for data and the end of the stream, and for room if so wished. Returns
    /// what holds already.
    pub(crate) fn watch(&self, room: bool) -> Readiness {
        let mut script = self.script.lock();
        script.watch = if room {
            Watch::DataAndRoom
        } else {
            Watch::Data
        };
        script.readiness()
    }

    /// Watches no more.
    pub(crate) fn unwatch(&self) {
        self.script.lock().watch = Watch::Nobody;
    }

    /// The peer sends a fragment of a stream, or a datagram. Returns what is to be reported, as
    /// all that follow do.
    pub(crate) fn feed(&self, fragment: &[u8], sender: Option<SocketAddr>) -> Readiness {
        self.change(|script| {
            // There is no empty fragment of a stream, and nothing comes after its end.
            if self.datagrams || !(fragment.is_empty() || script.ended || script.broken) {
                script.incoming.push_back((fragment.to_vec(), sender));
            }
        })
    }

    /// The peer sends no more.
    pub(crate) fn end(&self) -> Readiness {
        self.change(|script| script.ended |= !self.datagrams)
    }

    /// The connection fails. A datagram socket lives on.
    pub(crate) fn fail(&self, errno: Errno) -> Readiness {
        self.change(|script| {
            if !script.broken {
                script.failure = Some(errno);
                script.broken = !self.datagrams;
            }
        })
    }

    /// So many bytes more are taken; `None`: as many as come.
    pub(crate) fn make_room(&self, bytes: Option<usize>) -> Readiness {
        self.change(|script| {
            let more = |bytes: usize| bytes.saturating_add(script.room.unwrap_or(0));
            script.room = bytes.map(more);
        })
    }

    /// Nothing more is taken.
    pub(crate) fn block(&self) {
        self.script.lock().room = Some(0);
    }

    /// What was sent since this was last called, by the call.
    pub(crate) fn take_sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.script.lock().sent)
    }

    fn change(&self, change: impl FnOnce(&mut Script)) -> Readiness {
        let mut script = self.script.lock();
        change(&mut script);
        script.readiness()
    }
}

/// A number that no descriptor of the kernel has: the kernel's own limit, sysctl's nr_open, is
/// far below. As with the kernel, the lowest that is free.
pub(crate) struct Number(RawFd);

const FIRST_NUMBER: RawFd = 1 << 30;

static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers {
    next: FIRST_NUMBER,
    free: BinaryHeap::new(),
});

struct Numbers {
    next: RawFd,
    free: BinaryHeap<Reverse<RawFd>>,
}

impl Number {
    pub(crate) fn take() -> Self {
        let mut numbers = NUMBERS.lock();
        let free = numbers.free.pop().map(|Reverse(number)| number);
        Self(free.unwrap_or_else(|| {
            numbers.next += 1;
            numbers.next - 1
        }))
    }

    pub(crate) const fn get(&self) -> RawFd {
        self.0
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        NUMBERS.lock().free.push(Reverse(self.0));
    }
}
