//! Steady load: connections that stay open, some of them busy, some silent.

use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::Result;
use crate::args::Args;
use crate::connection::{Connection, PATIENCE, Progress};
use crate::histogram::Histogram;
use crate::message::Pattern;
use crate::poll::timeout;
use crate::process::Process;
use crate::report::{Meter, Report};

/// Silent connections say little when they have to prove that they are alive.
const IDLE_MESSAGE_BYTES: usize = 64;

pub(crate) fn run(args: &Args) -> Result<Report> {
    let mut meter = Meter::open(args.pid)?;

    let mut idle = Connection::open_many(args.address, args.connections as u32, args.idle)?;
    let idle_pattern = Pattern::new(IDLE_MESSAGE_BYTES);
    if args.greet {
        for connection in &mut idle {
            connection.echo_once(&idle_pattern)?;
        }
    }
    let mut busy = Busy::open(args)?;
    if let Some(server) = meter.server() {
        expect_accepted(server, args.idle + args.connections)?;
    }

    let start = Instant::now();
    busy.run_until(start + args.warmup)?;
    busy.measuring = true;
    let measured = meter.window(|began| busy.run_until(began + args.measured))?;
    busy.measuring = false;

    busy.drain()?;
    for connection in &mut idle {
        connection
            .echo_once(&idle_pattern)
            .map_err(|error| format!("idle {error}"))?;
    }
    drop(idle);
    let fewest = busy.completed.iter().copied().min().unwrap_or(0);
    let latency = busy.close();
    Ok(Report {
        mode: args.mode,
        connections: args.connections,
        idle: args.idle,
        size: args.size,
        count: latency.total(),
        fewest_per_connection: fewest,
        latency,
        measured,
        server: meter.close()?,
    })
}

/// A connection that waits in the backlog would not be measured at all. What the server held before
/// does not count: rloop closes the connections of the last run only when others come.
fn expect_accepted(server: &Process, descriptors: usize) -> Result<()> {
    let found = server.wait_for_descriptors(PATIENCE, |found| found >= descriptors)?;
    if found < descriptors {
        return Err(format!("server holds {found} descriptors, expected {descriptors}").into());
    }
    Ok(())
}

struct Busy {
    epoll: Epoll,
    connections: Vec<Connection>,
    completed: Vec<u64>,
    pattern: Pattern,
    scratch: Vec<u8>,
    buffer: Vec<u8>,
    events: Vec<EpollEvent>,
    latency: Histogram,
    measuring: bool,
    under_way: usize,
}

impl Busy {
    fn open(args: &Args) -> Result<Busy> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let connections = Connection::open_many(args.address, 0, args.connections)?;
        for (slot, connection) in connections.iter().enumerate() {
            connection.watch(&epoll, slot)?;
        }
        Ok(Busy {
            epoll,
            completed: vec![0; connections.len()],
            connections,
            pattern: Pattern::new(args.size),
            scratch: vec![0; args.size],
            // One byte more than a message: an answer that is too long is seen at once.
            buffer: vec![0; args.size + 1],
            events: vec![EpollEvent::empty(); 1024],
            latency: Histogram::new(),
            measuring: false,
            under_way: 0,
        })
    }

    /// Keeps every connection busy until `deadline`.
    fn run_until(&mut self, deadline: Instant) -> Result<()> {
        if self.under_way == 0 {
            for slot in 0..self.connections.len() {
                self.start(slot, Instant::now())?;
            }
        }
        while Instant::now() < deadline {
            self.turn(deadline, true)?;
        }
        Ok(())
    }

    /// Lets every message under way come back. One that does not is a failure.
    fn drain(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.under_way > 0 {
            if Instant::now() >= deadline {
                let waiting = self.under_way;
                return Err(format!("{waiting} connections got no full answer").into());
            }
            self.turn(deadline, false)?;
        }
        Ok(())
    }

    /// Closes all connections; what is left are the latencies.
    fn close(self) -> Histogram {
        self.latency
    }

    fn turn(&mut self, deadline: Instant, again: bool) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = match self.epoll.wait(&mut self.events, timeout(left)) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for index in 0..ready {
            let event = self.events[index];
            self.serve(event.data() as usize, event.events(), again)?;
        }
        Ok(())
    }

    fn serve(&mut self, slot: usize, flags: EpollFlags, again: bool) -> Result<()> {
        let connection = &mut self.connections[slot];
        if flags.contains(EpollFlags::EPOLLOUT) {
            connection.send(&self.pattern, &mut self.scratch)?;
            connection.update_interest(&self.epoll, slot, &self.pattern)?;
        }
        if !flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            return Ok(());
        }
        match connection.receive(&self.pattern, &mut self.buffer)? {
            Progress::Partial => Ok(()),
            Progress::End => Err(connection.ended_early()),
            Progress::Complete => self.complete(slot, again),
        }
    }

    fn complete(&mut self, slot: usize, again: bool) -> Result<()> {
        // One reading of the clock ends this message and begins the next.
        let now = Instant::now();
        self.under_way -= 1;
        if self.measuring {
            self.latency.record(now - self.connections[slot].began);
            self.completed[slot] += 1;
        }
        if again { self.start(slot, now) } else { Ok(()) }
    }

    fn start(&mut self, slot: usize, now: Instant) -> Result<()> {
        let connection = &mut self.connections[slot];
        connection.start(now, &self.pattern, &mut self.scratch)?;
        connection.update_interest(&self.epoll, slot, &self.pattern)?;
        self.under_way += 1;
        Ok(())
    }
}
