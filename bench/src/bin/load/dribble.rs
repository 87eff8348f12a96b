//! Clients that never finish what they say: a byte now and then, until the server has enough.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use crate::Result;
use crate::args::Args;
use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::findings::Findings;
use crate::poll::Poll;

pub(crate) fn run(args: &Args) -> Result<Findings> {
    let mut poll = Poll::new()?;
    let connections = Connection::open_many(args.address, 0, args.connections)?;
    let mut dribblers: Vec<Option<Connection>> = connections.into_iter().map(Some).collect();
    for (slot, connection) in dribblers.iter().flatten().enumerate() {
        poll.watch(&connection.socket, slot, EpollFlags::EPOLLIN)?;
    }
    let deadline = Deadline::of(args);
    let mut schedule = Schedule::new(args);
    let mut lives = Vec::new();
    let mut bytes = 0;
    let mut answered = 0;
    while lives.len() < dribblers.len() && !deadline.over() {
        for slot in schedule.due() {
            if let Some(connection) = &dribblers[slot] {
                // A failure shows as an event as well, where it is counted.
                bytes += (&connection.socket).write(b"x").unwrap_or(0) as u64;
            }
        }
        for (slot, _) in poll.wait(schedule.next)? {
            let Some(connection) = &dribblers[slot] else {
                continue;
            };
            match (&connection.socket).read(&mut [0; 64]) {
                Ok(1..) => answered += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => {
                    lives.push(connection.began.elapsed());
                    dribblers[slot] = None;
                }
            }
        }
    }
    Ok(Findings::new(args.mode)
        .count("dribblers", dribblers.len() as u64)
        .count("gone", lives.len() as u64)
        .count("answered", answered)
        .count("bytes", bytes)
        .seconds(
            "shortest_life",
            lives.iter().min().copied().unwrap_or_default(),
        )
        .seconds(
            "longest_life",
            lives.iter().max().copied().unwrap_or_default(),
        ))
}

/// Whose turn it is: all of them within one interval, evenly.
struct Schedule {
    connections: usize,
    turn: usize,
    pause: Duration,
    next: Instant,
}

impl Schedule {
    fn new(args: &Args) -> Schedule {
        Schedule {
            connections: args.connections,
            turn: 0,
            pause: args.interval / args.connections as u32,
            next: Instant::now(),
        }
    }

    fn due(&mut self) -> Vec<usize> {
        let mut slots = Vec::new();
        while self.next <= Instant::now() {
            slots.push(self.turn);
            self.turn = (self.turn + 1) % self.connections;
            self.next += self.pause;
        }
        slots
    }
}
