//! One client that behaves well. What it waits for is what others do to it.

use std::thread::sleep;
use std::time::Instant;

use crate::Result;
use crate::args::Args;
use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::findings::Findings;
use crate::histogram::Histogram;
use crate::message::Pattern;

pub(crate) fn run(args: &Args) -> Result<Findings> {
    let pattern = Pattern::new(args.size);
    let deadline = Deadline::of(args);
    let mut old = if args.visits_only {
        None
    } else {
        Some(Connection::open(args.address, 0)?)
    };
    let (mut visits, mut echoes) = (Histogram::new(), Histogram::new());
    let mut failed = 0;
    for id in 1.. {
        if deadline.over() {
            break;
        }
        let began = Instant::now();
        match visit(args, id, &pattern) {
            Ok(()) => visits.record(began.elapsed()),
            Err(error) => {
                eprintln!("load: visit: {error}");
                failed += 1;
            }
        }
        if let Some(old) = &mut old {
            let began = Instant::now();
            old.echo_once(&pattern)?;
            echoes.record(began.elapsed());
        }
        sleep(args.interval);
    }
    Ok(Findings::new(args.mode)
        .count("failed", failed)
        .latency("visit", &visits)
        .latency("echo", &echoes))
}

/// Connect, one echo, close.
fn visit(args: &Args, id: u32, pattern: &Pattern) -> Result<()> {
    Connection::open(args.address, id)?.echo_once(pattern)
}
