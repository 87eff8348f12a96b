//! One way only: as much as goes in, or as much as comes out.
//!
//! An upload begins with `U`, and what follows is anything; when we end our stream the server says
//! in eight bytes how much came. A download begins with `D`, and the server sends the bytes 0 to
//! 255, again and again, until we go.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;

use crate::Result;
use crate::args::{Args, Mode};
use crate::connection::{Connection, PATIENCE};
use crate::histogram::Histogram;
use crate::poll::Poll;
use crate::report::{Meter, Report};

const PIECE_BYTES: usize = 256 * 1024;
const MIB: u64 = 1024 * 1024;

pub(crate) fn run(args: &Args) -> Result<Report> {
    let mut meter = Meter::open(args.pid)?;
    let mut flows = Flows::open(args)?;

    flows.run_until(Instant::now() + args.warmup)?;
    let before = flows.bytes();
    let measured = meter.window(|began| flows.run_until(began + args.measured))?;
    let count = (flows.bytes() - before) / MIB;

    flows.end()?;
    Ok(Report {
        mode: args.mode,
        connections: args.connections,
        idle: 0,
        size: PIECE_BYTES,
        count,
        fewest_per_connection: 0,
        latency: Histogram::new(),
        measured,
        server: meter.close()?,
    })
}

struct Flows {
    poll: Poll,
    uploads: bool,
    flows: Vec<Flow>,
    /// What is sent, or what has to come: one period of it and what follows.
    known: Vec<u8>,
    buffer: Vec<u8>,
}

struct Flow {
    connection: Connection,
    bytes: u64,
}

impl Flows {
    fn open(args: &Args) -> Result<Flows> {
        let uploads = args.mode == Mode::Upload;
        let poll = Poll::new()?;
        let mut flows = Vec::new();
        for connection in Connection::open_many(args.address, 0, args.connections)? {
            let first: &[u8] = if uploads { b"U" } else { b"D" };
            (&connection.socket).write_all(first)?;
            let bytes = u64::from(uploads);
            let flags = if uploads {
                EpollFlags::EPOLLOUT
            } else {
                EpollFlags::EPOLLIN
            };
            poll.watch(&connection.socket, flows.len(), flags)?;
            flows.push(Flow { connection, bytes });
        }
        Ok(Flows {
            poll,
            uploads,
            flows,
            known: (0..PIECE_BYTES + 256).map(|at| at as u8).collect(),
            buffer: vec![0; PIECE_BYTES],
        })
    }

    fn bytes(&self) -> u64 {
        self.flows.iter().map(|flow| flow.bytes).sum()
    }

    fn run_until(&mut self, deadline: Instant) -> Result<()> {
        while Instant::now() < deadline {
            for (slot, _) in self.poll.wait(deadline)? {
                let flow = &mut self.flows[slot];
                let moved = if self.uploads {
                    (&flow.connection.socket).write(&self.known[..PIECE_BYTES])
                } else {
                    (&flow.connection.socket).read(&mut self.buffer)
                };
                match moved {
                    Ok(0) => return Err("closed by the server".into()),
                    Ok(moved) => {
                        let from = (flow.bytes % 256) as usize;
                        if !self.uploads && self.buffer[..moved] != self.known[from..from + moved] {
                            return Err(format!("wrong bytes after {}", flow.bytes).into());
                        }
                        flow.bytes += moved as u64;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Ends all; the server has to have got as much as was sent.
    fn end(self) -> Result<()> {
        if !self.uploads {
            return Ok(());
        }
        for flow in &self.flows {
            flow.connection.socket.shutdown(Shutdown::Write)?;
        }
        for flow in &self.flows {
            let socket = &flow.connection.socket;
            socket.set_nonblocking(false)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let mut told = [0; 8];
            { socket }.read_exact(&mut told)?;
            let told = u64::from_be_bytes(told);
            if told != flow.bytes {
                return Err(format!("sent {} bytes, and {told} came", flow.bytes).into());
            }
        }
        Ok(())
    }
}
