//! How long a run goes on: for a time, or until whoever started it closes our stdin.

use std::io::{Read, stdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use crate::args::Args;

pub(crate) enum Deadline {
    At(Instant),
    Told(Arc<AtomicBool>),
}

impl Deadline {
    /// Begins now.
    pub(crate) fn of(args: &Args) -> Deadline {
        if !args.until_told {
            return Deadline::At(Instant::now() + args.measured);
        }
        let told = Arc::new(AtomicBool::new(false));
        let ours = Arc::clone(&told);
        // A thread of its own, since stdin may be anything, a file as well, which epoll refuses.
        thread::spawn(move || {
            let mut bytes = [0; 64];
            while matches!(stdin().read(&mut bytes), Ok(1..)) {}
            ours.store(true, Ordering::Relaxed);
        });
        Deadline::Told(told)
    }

    pub(crate) fn over(&self) -> bool {
        match self {
            Deadline::At(at) => Instant::now() >= *at,
            Deadline::Told(told) => told.load(Ordering::Relaxed),
        }
    }
}
