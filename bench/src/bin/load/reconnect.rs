//! Clients whose connections fail: each speaks now and then, and comes again at once when its
//! connection is gone. Counted is how often, and how long it takes until it has an echo again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use crate::Result;
use crate::args::Args;
use crate::connection::{Connection, Progress};
use crate::deadline::Deadline;
use crate::findings::Findings;
use crate::histogram::Histogram;
use crate::message::{Mismatch, Pattern};
use crate::poll::Poll;

/// Between two tries when nobody listens.
const RETRY: Duration = Duration::from_millis(10);

/// How often it is asked whether the end has come.
const TICK: Duration = Duration::from_millis(20);

pub(crate) fn run(args: &Args) -> Result<Findings> {
    let deadline = Deadline::of(args);
    let mut regulars = Regulars::enter(args)?;
    while !deadline.over() {
        regulars.turn(true)?;
    }
    // Every message under way comes back, on this connection or on the next.
    let end = Instant::now() + args.patience;
    while regulars.under_way() > 0 && Instant::now() < end {
        regulars.turn(false)?;
    }
    Ok(Findings::new(args.mode)
        .count("connections", args.connections as u64)
        .count("failed", regulars.failed)
        .count("refused", regulars.refused)
        .count("without_echo_at_the_end", regulars.under_way() as u64)
        .latency("echo", &regulars.echo)
        .latency("reconnect", &regulars.reconnect))
}

struct Regulars {
    args: Args,
    pattern: Pattern,
    scratch: Vec<u8>,
    buffer: Vec<u8>,
    poll: Poll,
    clients: Vec<Client>,
    /// When whose next message is due, or its next try to connect.
    agenda: BinaryHeap<Reverse<(Instant, usize)>>,
    next_id: u32,
    failed: u64,
    refused: u64,
    echo: Histogram,
    reconnect: Histogram,
}

struct Client {
    connection: Option<Connection>,
    waits: bool,
    /// Since when it has had no connection that answers.
    broken: Option<Instant>,
}

impl Regulars {
    fn enter(args: &Args) -> Result<Regulars> {
        let mut regulars = Regulars {
            pattern: Pattern::new(args.size),
            scratch: vec![0; args.size],
            buffer: vec![0; args.size + 1],
            poll: Poll::new()?,
            clients: Vec::new(),
            agenda: BinaryHeap::new(),
            next_id: args.connections as u32,
            failed: 0,
            refused: 0,
            echo: Histogram::new(),
            reconnect: Histogram::new(),
            args: args.clone(),
        };
        let connections = Connection::open_many(args.address, 0, args.connections)?;
        let now = Instant::now();
        for (slot, connection) in connections.into_iter().enumerate() {
            regulars
                .poll
                .watch(&connection.socket, slot, EpollFlags::EPOLLIN)?;
            regulars.clients.push(Client {
                connection: Some(connection),
                waits: false,
                broken: None,
            });
            // Evenly over the interval.
            let due = now + args.interval.mul_f64(slot as f64 / args.connections as f64);
            regulars.agenda.push(Reverse((due, slot)));
        }
        Ok(regulars)
    }

    /// Clients that wait for an echo.
    fn under_way(&self) -> usize {
        self.clients.iter().filter(|client| client.waits).count()
    }

    fn turn(&mut self, go_on: bool) -> Result<()> {
        let now = Instant::now();
        while let Some(Reverse((due, slot))) = self.agenda.peek().copied()
            && due <= now
        {
            self.agenda.pop();
            if go_on || self.clients[slot].waits {
                self.speak(slot)?;
            }
        }
        let tick = now + TICK;
        let next = self
            .agenda
            .peek()
            .map_or(tick, |Reverse((due, _))| tick.min(*due));
        for (slot, _) in self.poll.wait(next)? {
            self.listen(slot)?;
        }
        Ok(())
    }

    /// Sends the next message, over a new connection when there is none.
    fn speak(&mut self, slot: usize) -> Result<()> {
        let now = Instant::now();
        let client = &mut self.clients[slot];
        client.waits = true;
        if client.connection.is_none() {
            self.next_id = self.next_id.wrapping_add(1);
            let Ok(connection) = Connection::open(self.args.address, self.next_id) else {
                self.refused += 1;
                self.agenda.push(Reverse((now + RETRY, slot)));
                return Ok(());
            };
            self.poll
                .watch(&connection.socket, slot, EpollFlags::EPOLLIN)?;
            client.connection = Some(connection);
        }
        let started = client
            .connection
            .as_mut()
            .map(|connection| connection.start(now, &self.pattern, &mut self.scratch));
        if matches!(started, Some(Err(_))) {
            self.fail(slot);
        }
        Ok(())
    }

    fn listen(&mut self, slot: usize) -> Result<()> {
        let client = &mut self.clients[slot];
        let Some(connection) = &mut client.connection else {
            return Ok(());
        };
        match connection.receive(&self.pattern, &mut self.buffer) {
            Ok(Progress::Partial) => {}
            Ok(Progress::Complete) => {
                let now = Instant::now();
                client.waits = false;
                self.echo.record(now - connection.began);
                if let Some(since) = client.broken.take() {
                    self.reconnect.record(now - since);
                }
                self.agenda.push(Reverse((now + self.args.interval, slot)));
            }
            // What does not match is no failure of a connection.
            Err(error) if error.is::<Mismatch>() => return Err(error),
            Ok(Progress::End) | Err(_) => self.fail(slot),
        }
        Ok(())
    }

    /// The connection is gone: closing it ends its events, and a new one is made at once.
    fn fail(&mut self, slot: usize) {
        let now = Instant::now();
        let client = &mut self.clients[slot];
        client.connection = None;
        client.broken.get_or_insert(now);
        self.failed += 1;
        if client.waits {
            self.agenda.push(Reverse((now, slot)));
        } else {
            // Its next message is on the agenda already; this one comes before it.
            client.waits = true;
            self.agenda.retain(|Reverse((_, other))| *other != slot);
            self.agenda.push(Reverse((now, slot)));
        }
    }
}
