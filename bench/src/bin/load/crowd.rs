//! More clients at once than the server wants to serve: each connects, sends, waits for its echo
//! however long that takes, stays a while, and goes.

use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use crate::Result;
use crate::args::Args;
use crate::connection::{Connection, Progress};
use crate::findings::Findings;
use crate::histogram::Histogram;
use crate::message::Pattern;
use crate::poll::Poll;

/// How often it is looked who may go.
const TICK: Duration = Duration::from_millis(5);

enum Guest {
    Waiting(Connection),
    /// Has had its echo; held until then.
    Held {
        _connection: Connection,
        until: Instant,
    },
    Gone,
}

pub(crate) fn run(args: &Args) -> Result<Findings> {
    let pattern = Pattern::new(args.size);
    let mut buffer = vec![0; args.size + 1];
    let mut poll = Poll::new()?;
    let mut guests = enter(args, &poll, &pattern)?;
    let mut echo = Histogram::new();
    let mut turned_away = 0;
    let mut progress = Instant::now();
    while waiting(&guests) > 0 && progress.elapsed() < args.patience {
        for (slot, _) in poll.wait(Instant::now() + TICK)? {
            let Guest::Waiting(mut connection) = std::mem::replace(&mut guests[slot], Guest::Gone)
            else {
                continue;
            };
            guests[slot] = match connection.receive(&pattern, &mut buffer) {
                Ok(Progress::Partial) => Guest::Waiting(connection),
                Ok(Progress::Complete) => {
                    progress = Instant::now();
                    echo.record(connection.began.elapsed());
                    poll.epoll().delete(&connection.socket)?;
                    let until = progress + args.hold;
                    Guest::Held {
                        _connection: connection,
                        until,
                    }
                }
                Ok(Progress::End) | Err(_) => {
                    turned_away += 1;
                    Guest::Gone
                }
            };
        }
        if !args.hold_all {
            let now = Instant::now();
            for guest in &mut guests {
                if matches!(guest, Guest::Held { until, .. } if *until <= now) {
                    *guest = Guest::Gone;
                }
            }
        }
    }
    Ok(Findings::new(args.mode)
        .count("guests", guests.len() as u64)
        .count("served", echo.total())
        .count("turned_away", turned_away)
        .count("still_waiting", waiting(&guests) as u64)
        .latency("echo", &echo))
}

fn enter(args: &Args, poll: &Poll, pattern: &Pattern) -> Result<Vec<Guest>> {
    let mut scratch = vec![0; args.size];
    let mut guests = Vec::with_capacity(args.connections);
    let connections = Connection::open_many(args.address, 0, args.connections)?;
    for (slot, mut connection) in connections.into_iter().enumerate() {
        let began = connection.began;
        connection.start(began, pattern, &mut scratch)?;
        poll.watch(&connection.socket, slot, EpollFlags::EPOLLIN)?;
        guests.push(Guest::Waiting(connection));
    }
    Ok(guests)
}

fn waiting(guests: &[Guest]) -> usize {
    let is_waiting = |guest: &&Guest| matches!(guest, Guest::Waiting(_));
    guests.iter().filter(is_waiting).count()
}
