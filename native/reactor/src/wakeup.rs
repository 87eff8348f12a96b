//! When a worker has to be woken, and what becomes of what comes too late for it.
//!
//! A wake-up costs a system call, so it is made only for a worker that sleeps. The worker
//! announces its sleep and looks at its inbox once more before it lies down; a sender puts
//! its message in first and looks at the announcement after. With a full fence between the
//! two steps on both sides at least one of them sees the other, so no message waits for a
//! worker that sleeps; and who sees the announcement takes it down, so of many senders one
//! makes the call.
//!
//! The end is the same handshake: a worker that stops says so and then clears its inbox,
//! and a sender looks afterwards whether it has stopped, and clears the inbox too. Nothing
//! is left in one that nobody reads.
//!
//! tests/wakeup.rs compiles this file once more, with loom's atomics, and walks through
//! every interleaving.

use super::sync::{AtomicBool, Ordering, fence};

/// What senders and their worker know of each other.
pub(crate) struct Wakeup {
    asleep: AtomicBool,
    stopping: AtomicBool,
}

impl Wakeup {
    pub(crate) fn new() -> Self {
        Self {
            asleep: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }

    /// Whether the caller, who has just put something in, has to wake the worker.
    pub(crate) fn is_needed(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel)
    }

    /// Announces sleep. False when the inbox turns out not to be `quiet`, or the worker has
    /// to stop.
    pub(crate) fn lie_down(&self, quiet: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let may_sleep = quiet() && !self.is_stopping();
        if !may_sleep {
            self.get_up();
        }
        may_sleep
    }

    pub(crate) fn get_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Says that the worker stops, or is to. The worker clears its inbox after this.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Whether the worker stops. A sender asks when it has put something in and
    /// [`is_needed`](Self::is_needed) has answered.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}
