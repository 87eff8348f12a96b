//! Clients that a server is glad to be rid of, one after the other and as fast as one thread can.
//! What they get for it does not matter; that the server outlives them, and who else suffers, does.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::Result;
use crate::args::Args;
use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::findings::Findings;

/// More than the buffers of two sockets take, so that the server cannot send all of it back.
const ABANDONED_BYTES: usize = 1 << 20;

/// How long a connection stays that is left alone.
const LEFT_ALONE: Duration = Duration::from_millis(200);

/// Connections left alone at one time; those whose server takes their bytes slowly among them.
const MOST_LEFT_ALONE: usize = 256;

#[derive(Clone, Copy)]
enum Rudeness {
    /// Reset before a byte was sent.
    ResetAtOnce,
    /// Reset while the echo is on its way.
    ResetBehindMessage,
    /// Reset while the server has more to send than the kernel takes.
    ResetUnderWrite,
    /// FIN without a word, then gone.
    FinAtOnce,
    /// Opened, half a message, silence; then reset.
    HalfOpen,
    /// FIN behind the message, and nothing is ever read; then reset.
    HalfClosed,
    /// Sends more than it will ever read back, waits, and closes with all of it unread.
    AbandonedWrite,
}

const ALL: [Rudeness; 7] = [
    Rudeness::ResetAtOnce,
    Rudeness::ResetBehindMessage,
    Rudeness::ResetUnderWrite,
    Rudeness::FinAtOnce,
    Rudeness::HalfOpen,
    Rudeness::HalfClosed,
    Rudeness::AbandonedWrite,
];

pub(crate) fn run(args: &Args) -> Result<Findings> {
    let mut storm = Storm {
        message: vec![b'm'; args.size.max(2)],
        flood: vec![b'f'; ABANDONED_BYTES],
        left_alone: VecDeque::new(),
    };
    let began = Instant::now();
    let deadline = Deadline::of(args);
    let (mut opened, mut not_opened) = (0, 0);
    for (id, rudeness) in (0..).zip(ALL.iter().cycle()) {
        if deadline.over() {
            break;
        }
        match Connection::open(args.address, id) {
            Ok(connection) => {
                opened += 1;
                storm.be_rude(connection.socket, *rudeness);
            }
            Err(_) => not_opened += 1,
        }
        storm.reset_the_oldest();
    }
    Ok(Findings::new(args.mode)
        .count("opened", opened)
        .count("not_opened", not_opened)
        .count(
            "per_second",
            (opened as f64 / began.elapsed().as_secs_f64()) as u64,
        ))
}

struct Storm {
    message: Vec<u8>,
    flood: Vec<u8>,
    /// The oldest first.
    left_alone: VecDeque<(Instant, TcpStream)>,
}

impl Storm {
    /// Errors are what a rude client deserves: the server may have been faster.
    fn be_rude(&mut self, mut socket: TcpStream, rudeness: Rudeness) {
        match rudeness {
            Rudeness::ResetAtOnce => reset(socket),
            Rudeness::ResetBehindMessage => {
                let _ = socket.write(&self.message);
                reset(socket);
            }
            Rudeness::ResetUnderWrite => {
                let _ = socket.write(&self.flood);
                let _ = socket.read(&mut [0; 1]);
                reset(socket);
            }
            Rudeness::FinAtOnce => drop(socket),
            Rudeness::HalfOpen => {
                let _ = socket.write(&self.message[1..]);
                self.leave_alone(socket);
            }
            Rudeness::HalfClosed => {
                let _ = socket.write(&self.message);
                let _ = socket.shutdown(Shutdown::Write);
                self.leave_alone(socket);
            }
            Rudeness::AbandonedWrite => {
                let _ = socket.write(&self.flood);
                self.leave_alone(socket);
            }
        }
    }

    fn leave_alone(&mut self, socket: TcpStream) {
        self.left_alone
            .push_back((Instant::now() + LEFT_ALONE, socket));
    }

    fn reset_the_oldest(&mut self) {
        while let Some((until, _)) = self.left_alone.front()
            && (*until <= Instant::now() || self.left_alone.len() > MOST_LEFT_ALONE)
        {
            if let Some((_, socket)) = self.left_alone.pop_front() {
                reset(socket);
            }
        }
    }
}

fn reset(socket: TcpStream) {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // The peer may have reset it before us.
    let _ = setsockopt(&socket, sockopt::Linger, &at_once);
}
