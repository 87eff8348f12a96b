//! Small messages without waiting for answers: so many are under way on each connection at all times.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use nix::sys::epoll::EpollFlags;

use crate::Result;
use crate::args::Args;
use crate::connection::{Connection, PATIENCE};
use crate::histogram::Histogram;
use crate::message::Pattern;
use crate::poll::Poll;
use crate::report::{Meter, Report};

const READ_BYTES: usize = 64 * 1024;

pub(crate) fn run(args: &Args) -> Result<Report> {
    let mut meter = Meter::open(args.pid)?;
    let mut pipes = Pipes::open(args)?;

    pipes.run_until(Instant::now() + args.warmup)?;
    pipes.latency = Histogram::new();
    let measured = meter.window(|began| pipes.run_until(began + args.measured))?;
    let latency = std::mem::replace(&mut pipes.latency, Histogram::new());

    pipes.drain()?;
    drop(pipes);
    Ok(Report {
        mode: args.mode,
        connections: args.connections,
        idle: 0,
        size: args.size,
        count: latency.total(),
        fewest_per_connection: 0,
        latency,
        measured,
        server: meter.close()?,
    })
}

struct Pipes {
    poll: Poll,
    pipes: Vec<Pipe>,
    pattern: Pattern,
    depth: usize,
    buffer: Vec<u8>,
    latency: Histogram,
}

/// One connection.
struct Pipe {
    connection: Connection,
    id: u32,
    /// Messages that were begun, by number, and when each was sent that has not come back.
    begun: u32,
    under_way: VecDeque<Instant>,
    unsent: Vec<u8>,
    /// Bytes that came of the message that is awaited next.
    received: usize,
}

impl Pipes {
    fn open(args: &Args) -> Result<Pipes> {
        let poll = Poll::new()?;
        let mut pipes = Vec::new();
        for (id, connection) in (0..).zip(Connection::open_many(args.address, 0, args.connections)?)
        {
            // Edge-triggered: a socket that is full says so once.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            poll.watch(&connection.socket, pipes.len(), flags)?;
            pipes.push(Pipe {
                connection,
                id,
                begun: 0,
                under_way: VecDeque::new(),
                unsent: Vec::new(),
                received: 0,
            });
        }
        Ok(Pipes {
            poll,
            pipes,
            pattern: Pattern::new(args.size),
            depth: args.depth,
            buffer: vec![0; READ_BYTES],
            latency: Histogram::new(),
        })
    }

    fn run_until(&mut self, deadline: Instant) -> Result<()> {
        for pipe in &mut self.pipes {
            pipe.top_up(self.depth, &self.pattern)?;
        }
        while Instant::now() < deadline {
            self.turn(deadline, self.depth)?;
        }
        Ok(())
    }

    /// Lets everything come back.
    fn drain(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.pipes.iter().any(|pipe| !pipe.under_way.is_empty()) {
            if Instant::now() >= deadline {
                return Err("not everything came back".into());
            }
            self.turn(deadline, 0)?;
        }
        Ok(())
    }

    fn turn(&mut self, deadline: Instant, depth: usize) -> Result<()> {
        for (slot, _) in self.poll.wait(deadline)? {
            let pipe = &mut self.pipes[slot];
            pipe.receive(&mut self.buffer, &self.pattern, &mut self.latency)?;
            pipe.top_up(depth, &self.pattern)?;
        }
        Ok(())
    }
}

impl Pipe {
    /// Sends what is missing to `depth` messages under way, in one piece.
    fn top_up(&mut self, depth: usize, pattern: &Pattern) -> Result<()> {
        let now = Instant::now();
        while self.under_way.len() < depth {
            self.begun = self.begun.wrapping_add(1);
            let from = self.unsent.len();
            self.unsent.resize(from + pattern.size(), 0);
            pattern.fill(self.id, self.begun, &mut self.unsent[from..]);
            self.under_way.push_back(now);
        }
        while !self.unsent.is_empty() {
            match (&self.connection.socket).write(&self.unsent) {
                Ok(taken) => {
                    self.unsent.drain(..taken);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads until nothing is left, and compares it.
    fn receive(
        &mut self,
        buffer: &mut [u8],
        pattern: &Pattern,
        latency: &mut Histogram,
    ) -> Result<()> {
        loop {
            let got = match (&self.connection.socket).read(buffer) {
                Ok(0) => return Err("closed by the server".into()),
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let now = Instant::now();
            let mut rest = &buffer[..got];
            while !rest.is_empty() {
                let piece = rest.len().min(pattern.size() - self.received);
                let awaited = self.begun.wrapping_sub(self.under_way.len() as u32) + 1;
                pattern.check(self.id, awaited, self.received, &rest[..piece])?;
                rest = &rest[piece..];
                self.received += piece;
                if self.received == pattern.size() {
                    self.received = 0;
                    let began = self.under_way.pop_front();
                    latency.record(now - began.ok_or("a byte too many")?);
                }
            }
        }
    }
}
