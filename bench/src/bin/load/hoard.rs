//! Clients that send much and read nothing for a time. In the end they read, and every byte must be
//! there: a server may make them wait, but not lose what it has taken.

use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use nix::sys::epoll::EpollFlags;

use crate::Result;
use crate::args::Args;
use crate::connection::Connection;
use crate::findings::Findings;
use crate::message::{MAX_PIECE, Stream};
use crate::poll::Poll;

struct Hoarder {
    connection: Connection,
    stream: Stream,
    sent: u64,
    received: u64,
}

pub(crate) fn run(args: &Args) -> Result<Findings> {
    let mut poll = Poll::new()?;
    let mut hoarders = Vec::new();
    for (slot, connection) in Connection::open_many(args.address, 0, args.connections)?
        .into_iter()
        .enumerate()
    {
        // Edge-triggered: a socket that is full says so once.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        poll.watch(&connection.socket, slot, flags)?;
        hoarders.push(Hoarder {
            connection,
            stream: Stream::new(slot as u32),
            sent: 0,
            received: 0,
        });
    }
    let began = Instant::now();
    while began.elapsed() < args.hold {
        for (slot, _) in poll.wait(began + args.hold)? {
            hoarders[slot].send(args.total)?;
        }
    }
    let taken: u64 = hoarders.iter().map(|hoarder| hoarder.sent).sum();
    let began = Instant::now();
    for hoarder in &mut hoarders {
        hoarder.exchange(args.total)?;
    }
    while hoarders.iter().any(|hoarder| hoarder.received < args.total) {
        let ready = poll.wait(Instant::now() + args.patience)?;
        if ready.is_empty() {
            let received: u64 = hoarders.iter().map(|hoarder| hoarder.received).sum();
            return Err(format!("stuck after {received} bytes in all").into());
        }
        for (slot, _) in ready {
            hoarders[slot].exchange(args.total)?;
        }
    }
    Ok(Findings::new(args.mode)
        .count("hoarders", hoarders.len() as u64)
        .count("bytes_each", args.total)
        .count("bytes_taken_unread", taken)
        .seconds("reading_took", began.elapsed()))
}

impl Hoarder {
    fn exchange(&mut self, total: u64) -> Result<()> {
        self.receive(total)?;
        self.send(total)
    }

    /// Sends what the kernel takes.
    fn send(&mut self, total: u64) -> Result<()> {
        while self.sent < total {
            let piece = self.stream.piece(self.sent, (total - self.sent) as usize);
            match (&self.connection.socket).write(piece) {
                Ok(taken) => self.sent += taken as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what is there, and compares it.
    fn receive(&mut self, total: u64) -> Result<()> {
        let mut buffer = vec![0; MAX_PIECE];
        while self.received < total {
            let got = match (&self.connection.socket).read(&mut buffer) {
                Ok(0) => return Err("closed by the server before all was read".into()),
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            if self.stream.piece(self.received, got) != &buffer[..got] {
                return Err(format!("wrong bytes after {}", self.received).into());
            }
            self.received += got as u64;
        }
        Ok(())
    }
}
