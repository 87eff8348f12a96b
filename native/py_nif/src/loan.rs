//! A listening socket lent to a worker.
//!
//! While clients come it would cost three wake-ups for each batch of them to wait in
//! `enif_select`: of the poll thread, of a scheduler, of the worker. So, where a listener has one
//! context, that context's worker gets the socket, accepts by itself, and gives it back when no
//! client has come for the linger. It gives it back, too, when there is no place or no descriptor,
//! and when it ends: the acceptor process then finds out what is wrong, and waits for that.
//!
//! A worker that a callback holds up accepts nobody, and one whose callback never returns would
//! keep the socket for ever. So the sentry looks after a loan now and then, and has the acceptors
//! take it back.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use reactor::{Acceptor, Admitted, Offer, Source};
use reactor_python::Opening;
use rustler::{Encoder, ResourceArc};

use crate::beam::post::post;
use crate::beam::select::Seat;
use crate::context::Context;
use crate::listener::Waiting;
use crate::sentry;

mod atoms {
    rustler::atoms! { accept }
}

/// A socket that is lent, as its listener sees it.
pub(crate) struct Loan {
    context: ResourceArc<Context>,
    revoked: AtomicBool,
    /// The acceptors that wait for its end.
    waiting: Mutex<Vec<Seat<Waiting>>>,
}

impl Loan {
    /// Lends the socket of an acceptor to a context. The acceptor is told when the loan ends, by
    /// the message `{accept, Acceptor}`.
    pub(crate) fn new(seat: &Seat<Waiting>, context: &ResourceArc<Context>) -> Arc<Self> {
        Arc::new(Self {
            context: context.clone(),
            revoked: AtomicBool::new(false),
            waiting: Mutex::new(vec![seat.clone()]),
        })
    }

    /// Has the worker accept.
    pub(crate) fn begin(self: Arc<Self>, seat: &Seat<Waiting>, socket: Arc<Acceptor>) {
        sentry::look_after_loan(&self);
        let context = self.context.clone();
        context.door().lend(Box::new(Lent {
            loan: self,
            seat: seat.clone(),
            socket,
        }));
    }

    /// Whether the worker has time to accept.
    pub(crate) fn stands(&self) -> bool {
        has_time(&self.context)
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Has another acceptor told of the end.
    pub(crate) fn join(&self, seat: &Seat<Waiting>) {
        let mut waiting = self.waiting.lock();
        if !waiting.iter().any(|other| std::ptr::eq(&**other, &**seat)) {
            waiting.push(seat.clone());
        }
    }

    /// The worker accepts nobody any more, whenever it comes round to see that.
    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        self.tell();
    }

    /// Has the acceptors look after it: where its worker is held up one of them ends it.
    pub(crate) fn tell(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for seat in waiting {
            post(seat.process(), move |env| {
                (atoms::accept(), seat.term(env)).encode(env)
            });
        }
    }
}

/// A context in the same turn for longer than this gets no new connections while another one has
/// time: a callback holds it up.
pub(crate) const BUSY_MS: u64 = 100;

/// Whether a worker could accept now.
pub(crate) fn has_time(context: &Context) -> bool {
    context.is_running() && context.mailbox().has_room() && context.mailbox().busy_ms() <= BUSY_MS
}

/// The worker's end of a [`Loan`].
struct Lent {
    loan: Arc<Loan>,
    seat: Seat<Waiting>,
    socket: Arc<Acceptor>,
}

impl Source<Opening> for Lent {
    fn accept(&mut self) -> Offer<Opening> {
        // An acceptor that has ended is replaced by one with a duplicate of its own.
        if self.loan.is_revoked() || self.seat.is_closed() {
            return Offer::Over;
        }
        let listener = self.seat.listener();
        match self.socket.admit(listener.service()) {
            Admitted::Connection(descriptor, admission) => Offer::Connection {
                descriptor,
                opening: listener.opening(),
                admission,
            },
            Admitted::Empty => Offer::Empty,
            Admitted::Full | Admitted::Exhausted(_) | Admitted::Failed(_) => Offer::Over,
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.seat.listener().has_back(&self.loan);
        self.loan.tell();
    }
}
