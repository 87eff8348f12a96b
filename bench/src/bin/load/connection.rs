//! One connection with one message under way.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::Result;
use crate::message::Pattern;

/// No answer for so long is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The servers listen with a backlog of 1,024; a longer burst would lose SYNs, and each lost one
/// costs a second. After so many connections the servers get a moment to accept them.
const BURST: usize = 256;
const BURST_PAUSE: Duration = Duration::from_millis(10);

/// Loopback addresses the connections come from: 127.0.0.1 and those behind it.
const SOURCES: u8 = 16;

pub(crate) struct Connection {
    pub(crate) socket: TcpStream,
    pub(crate) began: Instant,
    id: u32,
    sequence: u32,
    sent: usize,
    received: usize,
    waits_for_write: bool,
}

/// What reading brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Partial,
    Complete,
    End,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr, id: u32) -> Result<Connection> {
        let began = Instant::now();
        let socket =
            connect(address, id).map_err(|error| format!("connection {id}: connect: {error}"))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Connection {
            socket,
            began,
            id,
            sequence: 0,
            sent: 0,
            received: 0,
            waits_for_write: false,
        })
    }

    pub(crate) fn open_many(
        address: SocketAddr,
        first_id: u32,
        number: usize,
    ) -> Result<Vec<Connection>> {
        let mut opened = Vec::with_capacity(number);
        for (index, id) in (first_id..).take(number).enumerate() {
            if index % BURST == BURST - 1 {
                sleep(BURST_PAUSE);
            }
            opened.push(Connection::open(address, id)?);
        }
        Ok(opened)
    }

    pub(crate) fn watch(&self, epoll: &Epoll, slot: usize) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, slot as u64);
        Ok(epoll.add(&self.socket, event)?)
    }

    /// Begins the next message and sends what the kernel takes.
    pub(crate) fn start(
        &mut self,
        now: Instant,
        pattern: &Pattern,
        scratch: &mut [u8],
    ) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.began = now;
        self.sent = 0;
        self.received = 0;
        self.send(pattern, scratch)
    }

    /// Sends what is left of the message; `scratch` has the size of one.
    pub(crate) fn send(&mut self, pattern: &Pattern, scratch: &mut [u8]) -> Result<()> {
        if self.all_sent(pattern) {
            return Ok(());
        }
        pattern.fill(self.id, self.sequence, scratch);
        while self.sent < scratch.len() {
            match (&self.socket).write(&scratch[self.sent..]) {
                Ok(taken) => self.sent += taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("send", &error)),
            }
        }
        Ok(())
    }

    pub(crate) fn all_sent(&self, pattern: &Pattern) -> bool {
        self.sent == pattern.size()
    }

    /// Asks epoll for writability exactly while something is left to send.
    pub(crate) fn update_interest(
        &mut self,
        epoll: &Epoll,
        slot: usize,
        pattern: &Pattern,
    ) -> Result<()> {
        let wants_write = !self.all_sent(pattern);
        if wants_write != self.waits_for_write {
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, wants_write);
            epoll.modify(&self.socket, &mut EpollEvent::new(flags, slot as u64))?;
            self.waits_for_write = wants_write;
        }
        Ok(())
    }

    /// Reads once, and compares every byte that came.
    pub(crate) fn receive(&mut self, pattern: &Pattern, buffer: &mut [u8]) -> Result<Progress> {
        let got = match (&self.socket).read(buffer) {
            Ok(0) => return Ok(Progress::End),
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::Partial),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Progress::Partial),
            Err(error) => return Err(self.failed("receive", &error)),
        };
        pattern.check(self.id, self.sequence, self.received, &buffer[..got])?;
        self.received += got;
        Ok(if self.all_received(pattern) {
            Progress::Complete
        } else {
            Progress::Partial
        })
    }

    pub(crate) fn all_received(&self, pattern: &Pattern) -> bool {
        self.received == pattern.size()
    }

    /// The error for an end of stream where none belongs.
    pub(crate) fn ended_early(&self) -> Box<dyn std::error::Error> {
        let Connection {
            id,
            sequence,
            received,
            ..
        } = self;
        format!("connection {id}: closed by the server {received} bytes into message {sequence}")
            .into()
    }

    /// Sends one message and waits for all of it, blocking.
    pub(crate) fn echo_once(&mut self, pattern: &Pattern) -> Result<()> {
        self.socket.set_nonblocking(false)?;
        self.socket.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = vec![0; pattern.size()];
        self.start(Instant::now(), pattern, &mut buffer)?;
        loop {
            match self.receive(pattern, &mut buffer)? {
                Progress::Complete => return Ok(()),
                Progress::End => return Err(self.ended_early()),
                // Blocking: nothing at all means that the time is over.
                Progress::Partial if self.began.elapsed() >= PATIENCE => {
                    return Err(format!("connection {}: no echo", self.id).into());
                }
                Progress::Partial => {}
            }
        }
    }

    fn failed(&self, what: &str, error: &std::io::Error) -> Box<dyn std::error::Error> {
        let Connection { id, sequence, .. } = self;
        format!("connection {id}, message {sequence}: {what}: {error}").into()
    }
}

/// Connects, blocking; over loopback this needs nothing from the server but room in its backlog.
fn connect(address: SocketAddr, id: u32) -> nix::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv4() && address.ip().is_loopback() {
        bind_source(&socket, id)?;
    }
    let patience = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(TcpStream::from(socket))
}

/// Spreads the connections over several source addresses: a closed one keeps its port for a second
/// (TIME_WAIT), and with all 28,000 ports of one address in use connect takes 45 ms to find one.
fn bind_source(socket: &OwnedFd, id: u32) -> nix::Result<()> {
    let last = 1 + (id % u32::from(SOURCES)) as u8;
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, last, 0))
}
