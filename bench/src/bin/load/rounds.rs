//! Very many connections. In each round every one of them echoes once, some at a time; between two
//! rounds all are silent, so that the server meets each of them as one that has long been idle.

use std::thread::sleep;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;

use crate::Result;
use crate::args::Args;
use crate::connection::{Connection, Progress};
use crate::findings::Findings;
use crate::histogram::Histogram;
use crate::message::Pattern;
use crate::poll::Poll;

pub(crate) fn run(args: &Args) -> Result<Findings> {
    let began = Instant::now();
    let mut connections = Connection::open_many(args.address, 0, args.connections)?;
    let opened = began.elapsed();
    let mut poll = Poll::new()?;
    for (slot, connection) in connections.iter().enumerate() {
        poll.watch(&connection.socket, slot, EpollFlags::EPOLLIN)?;
    }
    let mut echo = Histogram::new();
    let mut longest_round = std::time::Duration::ZERO;
    for _ in 0..args.rounds {
        sleep(args.interval);
        let began = Instant::now();
        round(args, &mut connections, &mut poll, &mut echo)?;
        longest_round = longest_round.max(began.elapsed());
    }
    Ok(Findings::new(args.mode)
        .count("connections", connections.len() as u64)
        .seconds("opened", opened)
        .seconds("longest_round", longest_round)
        .latency("echo", &echo))
}

fn round(
    args: &Args,
    connections: &mut [Connection],
    poll: &mut Poll,
    echo: &mut Histogram,
) -> Result<()> {
    let pattern = Pattern::new(args.size);
    let mut scratch = vec![0; args.size];
    // One byte more than a message: an answer that is too long is seen at once.
    let mut buffer = vec![0; args.size + 1];
    let mut next = 0..connections.len();
    let mut under_way = 0;
    for slot in next.by_ref().take(args.window) {
        connections[slot].start(Instant::now(), &pattern, &mut scratch)?;
        under_way += 1;
    }
    while under_way > 0 {
        let ready = poll.wait(Instant::now() + args.patience)?;
        if ready.is_empty() {
            return Err(format!("{under_way} connections got no echo").into());
        }
        for (slot, _) in ready {
            match connections[slot].receive(&pattern, &mut buffer)? {
                Progress::Partial => continue,
                Progress::End => return Err(connections[slot].ended_early()),
                Progress::Complete => {}
            }
            let now = Instant::now();
            echo.record(now - connections[slot].began);
            under_way -= 1;
            if let Some(slot) = next.next() {
                connections[slot].start(now, &pattern, &mut scratch)?;
                under_way += 1;
            }
        }
    }
    Ok(())
}
