//! Tickets: one answer, at most, to the process that asked.
//!
//! Whoever asks for something that takes time gets a ticket, a term, and waits for the message
//! `{Ticket, Answer}`. The work holds the other end, a [`Ticket`]. One atomic stage decides between
//! the answer and the giving up, so that exactly one of them wins:
//!
//! ```text
//! Queued -> Running -> Answered
//!    |         |
//!    +---------+-----> Abandoned
//! ```
//!
//! An asker that gives up calls [`TicketState::abandon`]: `true` means that no message will come,
//! `false` that one was sent. Work whose ticket is abandoned while it waits is never begun; work that
//! runs is interrupted. If the asker dies its tickets are abandoned for it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use rustler::thread::is_scheduler_thread;
use rustler::types::atom::error;
use rustler::{Atom, Encoder, Env, LocalPid, Monitor, Resource, ResourceArc, Term};

use crate::beam::post::post;

const QUEUED: u8 = 0;
const RUNNING: u8 = 1;
const ANSWERED: u8 = 2;
const ABANDONED: u8 = 3;

/// What the asker's term refers to.
pub(crate) struct TicketState {
    stage: AtomicU8,
    asker: LocalPid,
    monitor: OnceLock<Monitor>,
    interrupt: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[rustler::resource_impl]
impl Resource for TicketState {
    const IMPLEMENTS_DOWN: bool = true;

    /// The asker died. This may run on any thread, so it only flips the stage and queues a job.
    fn down<'a>(&'a self, _env: Env<'a>, _asker: LocalPid, _monitor: Monitor) {
        self.abandon();
    }
}

impl TicketState {
    /// Gives up: true if no answer was sent and none will be.
    pub(crate) fn abandon(&self) -> bool {
        match self.finish(ABANDONED) {
            Some(stage) => {
                if stage == RUNNING
                    && let Some(interrupt) = self.interrupt.get()
                {
                    interrupt();
                }
                true
            }
            None => self.stage.load(Ordering::Acquire) == ABANDONED,
        }
    }

    /// Enters a final stage and tells which one was left; None if the stage was final already.
    fn finish(&self, last: u8) -> Option<u8> {
        self.stage
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |stage| {
                (stage == QUEUED || stage == RUNNING).then_some(last)
            })
            .ok()
    }
}

/// The end that the work holds. Dropping it without an answer answers `{error, Reason}`.
pub(crate) struct Ticket {
    state: ResourceArc<TicketState>,
    reason_if_dropped: Atom,
}

impl Ticket {
    /// A ticket for `asker`, which must be the process that owns `env`; its death abandons it.
    pub(crate) fn new(env: Env<'_>, asker: LocalPid, reason_if_dropped: Atom) -> Ticket {
        let state = ResourceArc::new(TicketState {
            stage: AtomicU8::new(QUEUED),
            asker,
            monitor: OnceLock::new(),
            interrupt: OnceLock::new(),
        });
        // Without a monitor the asker is dying: its answer will go nowhere, which is right.
        if let Some(monitor) = env.monitor(&state, &asker) {
            let _ = state.monitor.set(monitor);
        }
        Ticket {
            state,
            reason_if_dropped,
        }
    }

    /// The term by which the asker knows its answer.
    pub(crate) fn term<'a>(&self, env: Env<'a>) -> Term<'a> {
        self.state.encode(env)
    }

    /// Tells, whenever it is called, whether the asker has given up.
    pub(crate) fn is_abandoned(&self) -> impl Fn() -> bool + Send + 'static {
        let state = self.state.clone();
        move || state.stage.load(Ordering::Acquire) == ABANDONED
    }

    /// The work begins: false if the asker has given up, and then it must not begin. `interrupt` is
    /// called, on any thread, when the asker gives up from now on.
    pub(crate) fn begin(&self, interrupt: impl Fn() + Send + Sync + 'static) -> bool {
        // A second call would find the first one's interrupt; there is one call for each ticket.
        let _ = self.state.interrupt.set(Box::new(interrupt));
        self.state
            .stage
            .compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Sends `{Ticket, Answer}` unless the asker has given up.
    pub(crate) fn answer(self, build: impl for<'a> FnOnce(Env<'a>) -> Term<'a> + Send + 'static) {
        self.send(build);
    }

    /// Takes the ticket back before its term was handed out: nothing is sent.
    pub(crate) fn withdraw(self) {
        self.state.finish(ABANDONED);
    }

    fn send(&self, build: impl for<'a> FnOnce(Env<'a>) -> Term<'a> + Send + 'static) {
        if self.state.finish(ANSWERED).is_none() {
            return;
        }
        // On a scheduler the monitor is left to the end of the resource.
        if !is_scheduler_thread()
            && let Some(monitor) = self.state.monitor.get()
        {
            self.state.demonitor(None, monitor);
        }
        let state = self.state.clone();
        post(self.state.asker, move |env| {
            let answer = build(env);
            (state.encode(env), answer).encode(env)
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let reason = self.reason_if_dropped;
        self.send(move |env| (error(), reason).encode(env));
    }
}
