//! Connections that live for one echo, and the ways in which they end.

use std::net::{Shutdown, SocketAddr};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt};

use crate::Result;
use crate::args::{Args, Mode};
use crate::connection::{Connection, PATIENCE, Progress};
use crate::histogram::Histogram;
use crate::message::Pattern;
use crate::poll::timeout;
use crate::report::{Meter, Report};

/// How a connection ends, from the client's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Full echo, then FIN.
    Fin,
    /// Full echo, then a reset (SO_LINGER with zero seconds).
    Reset,
    /// FIN right behind the message; the full echo and the server's FIN must still come.
    HalfClose,
    /// Closed while the echo lies unread in our socket: the kernel answers with a reset.
    Unread,
}

const MIXED: [Ending; 4] = [
    Ending::Fin,
    Ending::Reset,
    Ending::HalfClose,
    Ending::Unread,
];

pub(crate) fn run(args: &Args) -> Result<Report> {
    let mut meter = Meter::open(args.pid)?;
    let mut churn = Churn::new(args)?;
    if args.count.is_none() {
        churn.run(Limit::Until(Instant::now() + args.warmup))?;
        churn.latency = Histogram::new();
    }

    let measured = meter.window(|began| {
        churn.run(match args.count {
            Some(count) => Limit::Opened(count),
            None => Limit::Until(began + args.measured),
        })
    })?;
    Ok(Report {
        mode: args.mode,
        connections: args.connections,
        idle: 0,
        size: args.size,
        count: churn.latency.total(),
        fewest_per_connection: 1,
        latency: churn.latency,
        measured,
        server: meter.close()?,
    })
}

#[derive(Clone, Copy)]
enum Limit {
    Until(Instant),
    Opened(u64),
}

struct Churn {
    address: SocketAddr,
    endings: &'static [Ending],
    epoll: Epoll,
    slots: Vec<Option<(Connection, Ending)>>,
    pattern: Pattern,
    scratch: Vec<u8>,
    buffer: Vec<u8>,
    latency: Histogram,
    opened: u64,
}

impl Churn {
    fn new(args: &Args) -> Result<Churn> {
        Ok(Churn {
            address: args.address,
            endings: if args.mode == Mode::MixedClose {
                &MIXED
            } else {
                &MIXED[..1]
            },
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            slots: (0..args.connections).map(|_| None).collect(),
            pattern: Pattern::new(args.size),
            scratch: vec![0; args.size],
            buffer: vec![0; args.size + 1],
            latency: Histogram::new(),
            opened: 0,
        })
    }

    /// Opens connections up to the limit, and returns when the last of them has ended.
    fn run(&mut self, limit: Limit) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        let mut last_end = Instant::now();
        for slot in 0..self.slots.len() {
            self.refill(slot, limit)?;
        }
        while self.slots.iter().any(Option::is_some) {
            let ready = match self.epoll.wait(&mut events, timeout(PATIENCE)) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..ready] {
                let slot = event.data() as usize;
                if self.serve(slot, event.events())? {
                    self.slots[slot] = None;
                    last_end = Instant::now();
                    self.refill(slot, limit)?;
                }
            }
            if last_end.elapsed() >= PATIENCE {
                let open = self.slots.iter().flatten().count();
                return Err(format!("{open} connections neither echo nor end").into());
            }
        }
        Ok(())
    }

    fn refill(&mut self, slot: usize, limit: Limit) -> Result<()> {
        let full = match limit {
            Limit::Until(deadline) => Instant::now() >= deadline,
            Limit::Opened(count) => self.opened >= count,
        };
        if full {
            return Ok(());
        }
        let ending = self.endings[self.opened as usize % self.endings.len()];
        let mut connection = Connection::open(self.address, self.opened as u32)?;
        self.opened += 1;
        connection.watch(&self.epoll, slot)?;
        // Latency counts from before connect: `open` has noted the time.
        connection.start(connection.began, &self.pattern, &mut self.scratch)?;
        self.after_sending(slot, &mut connection, ending)?;
        self.slots[slot] = Some((connection, ending));
        Ok(())
    }

    fn after_sending(
        &self,
        slot: usize,
        connection: &mut Connection,
        ending: Ending,
    ) -> Result<()> {
        connection.update_interest(&self.epoll, slot, &self.pattern)?;
        if ending == Ending::HalfClose && connection.all_sent(&self.pattern) {
            connection.socket.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// True when the connection has ended and may be dropped, which closes it.
    fn serve(&mut self, slot: usize, flags: EpollFlags) -> Result<bool> {
        let Some((mut connection, ending)) = self.slots[slot].take() else {
            return Ok(false);
        };
        if flags.contains(EpollFlags::EPOLLOUT) && !connection.all_sent(&self.pattern) {
            connection.send(&self.pattern, &mut self.scratch)?;
            self.after_sending(slot, &mut connection, ending)?;
        }
        let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        let ended = flags.intersects(readable) && self.ended(&mut connection, ending)?;
        if ended {
            self.latency.record(connection.began.elapsed());
        }
        self.slots[slot] = Some((connection, ending));
        Ok(ended)
    }

    fn ended(&mut self, connection: &mut Connection, ending: Ending) -> Result<bool> {
        if ending == Ending::Unread {
            return Ok(true);
        }
        let progress = connection.receive(&self.pattern, &mut self.buffer)?;
        match (ending, progress) {
            (Ending::HalfClose, Progress::End) if connection.all_received(&self.pattern) => {
                Ok(true)
            }
            (_, Progress::End) => Err(connection.ended_early()),
            (Ending::HalfClose, Progress::Complete) | (_, Progress::Partial) => Ok(false),
            (Ending::Reset, Progress::Complete) => {
                let at_once = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&connection.socket, sockopt::Linger, &at_once)?;
                Ok(true)
            }
            (Ending::Fin | Ending::Unread, Progress::Complete) => Ok(true),
        }
    }
}
