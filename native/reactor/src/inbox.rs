//! The way into a worker from every other thread, and what wakes it.
//!
//! Three bounded channels share one wake-up: descriptors on their way in, signals about
//! connections that are there already, and messages for handlers. Nobody who sends ever
//! waits. Each sender puts its message in first and then asks the
//! [wake-up](crate::wakeup) whether the worker has to be told.

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;

use crate::action::Action;
use crate::counters::Counters;
use crate::descriptor::Descriptor;
use crate::poller::Readiness;
use crate::service::{Admission, Limits, Service};
use crate::source::Source;
use crate::wakeup::Wakeup;

/// Something for a handler, which the engine carries without looking at it.
pub type Payload = Box<dyn Any + Send>;

/// Names one connection of one engine for ever: the number of a slot that is used
/// again comes with another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Key {
    const fn packed(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }
}

/// Something that happened to a connection outside its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The demultiplexer saw this on a parked connection.
    Ready(Key, Readiness),
    /// Somebody resumes a connection, or asks it to close.
    Resume(Key, Action),
    /// Somebody left a wish with the owner of a connection.
    Look(Key),
    /// The number of its descriptor was given to somebody else.
    DescriptorGone(Key),
}

/// For one connection, or for the handler itself.
pub(crate) type Message = (Option<Key>, Payload);

/// What comes in through a [`Door`].
pub(crate) enum Arrival<O> {
    Newcomer(Newcomer<O>),
    Source(Box<dyn Source<O>>),
}

/// A descriptor on its way in, with what its handler will want to know.
pub(crate) struct Newcomer<O> {
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) opening: O,
    pub(crate) place: Place,
    pub(crate) admission: Admission,
}

/// Why a message did not get in. Nothing was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// The context holds as many connections, or messages, as it may.
    Full,
    /// The worker has ended.
    Closed,
}

impl fmt::Display for SendError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Full => "the queue is full",
            Self::Closed => "it has stopped",
        })
    }
}

impl std::error::Error for SendError {}

/// The part of an inbox that does not depend on what a connection opens with.
pub struct Mailbox {
    signals: Sender<Signal>,
    messages: Sender<Message>,
    /// The worker's end, to take back what came too late for the worker.
    late_messages: Receiver<Message>,
    /// None once the worker has ended: whoever refers to a context, and be it a report in
    /// a logger, keeps no descriptor open. The lock is never held across a call.
    waker: Mutex<Option<Arc<mio::Waker>>>,
    wakeup: Wakeup,
    overflowed: AtomicBool,
    /// The stage of some service has changed.
    reviewing: AtomicBool,
    max_connections: u64,
    counters: Arc<Counters>,
    /// What connections belong to that no listener accepted.
    plain: Arc<Service>,
    worker: OnceLock<ThreadId>,
    /// The connection whose step the worker is in, or `NOBODY`.
    stepping: AtomicU64,
    created: Instant,
    /// Milliseconds after `created` at which the present turn began; `RESTING` between.
    turn_began_ms: AtomicU64,
}

const RESTING: u64 = u64::MAX;
/// No key: there are fewer than 2^32 slots.
const NOBODY: u64 = u64::MAX;

impl Mailbox {
    /// Tells the worker to close everything and end.
    pub fn stop(&self) {
        self.wakeup.stop();
        self.wake();
    }

    /// Reports readiness of a parked connection. Never lost: when the channel is full
    /// the worker looks at every parked connection instead.
    pub fn ready(&self, key: Key, readiness: Readiness) {
        self.must_arrive(Signal::Ready(key, readiness));
    }

    /// Gives a connection an action from outside its callbacks.
    ///
    /// # Errors
    /// The channel is full or the worker has ended.
    pub fn resume(&self, key: Key, action: Action) -> Result<(), SendError> {
        let sent = self.signals.try_send(Signal::Resume(key, action));
        self.wake();
        sent.map_err(SendError::from)
    }

    /// Gives one connection, or the handler itself, a message.
    ///
    /// # Errors
    /// The channel is full or the worker has ended.
    pub(crate) fn send(&self, to: Option<Key>, message: Payload) -> Result<(), SendError> {
        if self.is_stopping() {
            return Err(SendError::Closed);
        }
        let sent = self.messages.try_send((to, message));
        self.wake();
        // As in `Door::send`.
        if self.is_stopping() {
            clear(&self.late_messages);
        }
        sent.map_err(SendError::from)
    }

    /// Gives the handler a message that belongs to no connection, for
    /// [`Handler::errand`](crate::Handler::errand).
    ///
    /// # Errors
    /// The channel is full or the worker has ended.
    pub fn errand(&self, errand: Payload) -> Result<(), SendError> {
        self.send(None, errand)
    }

    /// Has the worker look at the [stage](Service::stage) of every connection's service.
    pub fn review(&self) {
        self.reviewing.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether one more connection would be taken.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.is_stopping() && self.counters.active.get() < self.max_connections
    }

    /// What this context counts.
    #[must_use]
    pub const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// For how many milliseconds the present turn has been going on; 0 between turns. A
    /// large number means that a callback blocks the worker.
    #[must_use]
    pub fn busy_ms(&self) -> u64 {
        match self.turn_began_ms.load(Ordering::Relaxed) {
            RESTING => 0,
            began => self.millis(Instant::now()).saturating_sub(began),
        }
    }

    pub(crate) fn begin_turn(&self, now: Instant) {
        self.turn_began_ms
            .store(self.millis(now), Ordering::Relaxed);
    }

    pub(crate) fn end_turn(&self) {
        self.turn_began_ms.store(RESTING, Ordering::Relaxed);
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.created).as_millis()).unwrap_or(u64::MAX)
    }

    /// From here on the calling thread is the worker.
    pub(crate) fn is_served_here(&self) {
        // An engine stays on its thread.
        let _ = self.worker.set(thread::current().id());
    }

    pub(crate) fn begin_step(&self, key: Key) {
        self.stepping.store(key.packed(), Ordering::Relaxed);
    }

    pub(crate) fn end_step(&self) {
        self.stepping.store(NOBODY, Ordering::Relaxed);
    }

    /// Whether the caller is the worker in the middle of this connection's step.
    pub(crate) fn is_stepping(&self, key: Key) -> bool {
        self.stepping.load(Ordering::Relaxed) == key.packed()
            && self.worker.get() == Some(&thread::current().id())
    }

    pub(crate) fn take_review(&self) -> bool {
        self.reviewing.load(Ordering::Relaxed) && self.reviewing.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn must_arrive(&self, signal: Signal) {
        if let Err(TrySendError::Full(_)) = self.signals.try_send(signal) {
            self.overflowed.store(true, Ordering::Release);
        }
        self.wake();
    }

    fn wake(&self) {
        if self.wakeup.is_needed() {
            let waker = self.waker.lock().clone();
            // An eventfd takes a wake-up unless its counter is full, and then the
            // worker is being woken already.
            let _ = waker.map(|waker| waker.wake());
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.wakeup.is_stopping()
    }

    pub(crate) fn take_overflow(&self) -> bool {
        self.overflowed.load(Ordering::Relaxed) && self.overflowed.swap(false, Ordering::AcqRel)
    }
}

impl<T> From<TrySendError<T>> for SendError {
    fn from(error: TrySendError<T>) -> Self {
        match error {
            TrySendError::Full(_) => Self::Full,
            TrySendError::Disconnected(_) => Self::Closed,
        }
    }
}

/// A place among the connections of a context, given back when it is dropped.
pub(crate) struct Place(Arc<Mailbox>);

impl Place {
    pub(crate) fn take(mailbox: &Arc<Mailbox>) -> Option<Self> {
        let counters = &mailbox.counters;
        if !counters.active.add_below(mailbox.max_connections) {
            counters.refused.add(1);
            return None;
        }
        Some(Self(Arc::clone(mailbox)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.counters.active.subtract(1);
    }
}

/// Where descriptors are handed in. Cheap to clone, usable from any thread.
pub struct Door<O> {
    arrivals: Sender<Arrival<O>>,
    /// The worker's end, to take back what came too late for the worker.
    leftovers: Receiver<Arrival<O>>,
    mailbox: Arc<Mailbox>,
}

impl<O> Clone for Door<O> {
    fn clone(&self) -> Self {
        Self {
            arrivals: self.arrivals.clone(),
            leftovers: self.leftovers.clone(),
            mailbox: Arc::clone(&self.mailbox),
        }
    }
}

impl<O> Door<O> {
    /// Hands a descriptor in. It is closed when there is no place for it, and when the
    /// context ends before it takes it in: then `opening` is dropped.
    ///
    /// # Errors
    /// The context is full or stops; `opening` comes back.
    pub fn hand_in(&self, descriptor: Arc<Descriptor>, opening: O) -> Result<(), (SendError, O)> {
        match self.mailbox.plain.admit() {
            Some(admission) => self
                .admit(descriptor, opening, admission)
                .map_err(|(error, opening, _)| (error, opening)),
            // Cannot be: it has as many places as there are numbers.
            None => Err((SendError::Full, opening)),
        }
    }

    /// Hands in a descriptor of a service, as [`hand_in`](Self::hand_in) does.
    ///
    /// # Errors
    /// The context is full or stops; `opening` and `admission` come back.
    pub fn admit(
        &self,
        descriptor: Arc<Descriptor>,
        opening: O,
        admission: Admission,
    ) -> Result<(), (SendError, O, Admission)> {
        if self.mailbox.is_stopping() {
            return Err((SendError::Closed, opening, admission));
        }
        let Some(place) = Place::take(&self.mailbox) else {
            return Err((SendError::Full, opening, admission));
        };
        let newcomer = Newcomer {
            descriptor,
            opening,
            place,
            admission,
        };
        match self.send(Arrival::Newcomer(newcomer)) {
            Some(Arrival::Newcomer(refused)) => {
                Err((SendError::Full, refused.opening, refused.admission))
            }
            Some(Arrival::Source(_)) | None => Ok(()),
        }
    }

    /// Lends the worker a source of connections. It is given back, that is dropped, when no
    /// connection has come from it for the linger, when it cannot go on, and when the context
    /// ends.
    pub fn lend(&self, source: Box<dyn Source<O>>) {
        if !self.mailbox.is_stopping() {
            // What does not get in is given back at once.
            drop(self.send(Arrival::Source(source)));
        }
    }

    /// Gives back what does not get in.
    fn send(&self, arrival: Arrival<O>) -> Option<Arrival<O>> {
        let sent = self.arrivals.try_send(arrival);
        self.mailbox.wake();
        // Nobody else clears what came in after the worker did.
        if self.mailbox.is_stopping() {
            clear(&self.leftovers);
        }
        // It is full: it cannot be disconnected while this door itself holds a receiver.
        sent.err().map(TrySendError::into_inner)
    }

    /// How much waits for the worker now, also while a callback holds it up.
    #[must_use]
    pub fn depth(&self) -> u64 {
        let mailbox = &self.mailbox;
        let waiting = self.arrivals.len() + mailbox.signals.len() + mailbox.messages.len();
        mailbox.counters.queue_depth.get() + waiting as u64
    }

    /// The rest of the inbox.
    #[must_use]
    pub const fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }
}

/// Drops what is in the queue; each descriptor is closed.
fn clear<T>(queue: &Receiver<T>) {
    while queue.try_recv().is_ok() {}
}

/// The worker's end.
pub(crate) struct Inbox<O> {
    pub(crate) arrivals: Receiver<Arrival<O>>,
    pub(crate) signals: Receiver<Signal>,
    pub(crate) messages: Receiver<Message>,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// Descriptors that may wait for their worker at one time. A worker takes them in every
/// turn; a longer queue would only hide that it is stuck.
const MAX_ARRIVALS: usize = 4096;
/// Messages that may wait for their worker at one time.
const MAX_MESSAGES: usize = 4096;
/// Room for signals beside one for every connection.
const SPARE_SIGNALS: usize = 1024;
/// Room is taken at once, so it has a bound; beyond it the worker looks at everybody.
const MAX_SIGNALS: usize = 64 * 1024;

impl<O> Inbox<O> {
    pub(crate) fn new(
        waker: mio::Waker,
        max_connections: usize,
        counters: Arc<Counters>,
    ) -> io::Result<(Door<O>, Self)> {
        if max_connections == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "max_connections must be at least 1",
            ));
        }
        let (door, arrivals) = crossbeam_channel::bounded(max_connections.min(MAX_ARRIVALS));
        let room = max_connections.min(MAX_SIGNALS) + SPARE_SIGNALS;
        let (sender, signals) = crossbeam_channel::bounded(room);
        let (message_sender, messages) = crossbeam_channel::bounded(MAX_MESSAGES);
        let mailbox = Arc::new(Mailbox {
            signals: sender,
            messages: message_sender,
            late_messages: messages.clone(),
            waker: Mutex::new(Some(Arc::new(waker))),
            wakeup: Wakeup::new(),
            overflowed: AtomicBool::new(false),
            reviewing: AtomicBool::new(false),
            max_connections: max_connections as u64,
            counters,
            plain: Service::new(String::new(), Limits::default(), u64::MAX),
            worker: OnceLock::new(),
            stepping: AtomicU64::new(NOBODY),
            created: Instant::now(),
            turn_began_ms: AtomicU64::new(RESTING),
        });
        let leftovers = arrivals.clone();
        let inbox = Self {
            arrivals,
            signals,
            messages,
            mailbox: Arc::clone(&mailbox),
        };
        Ok((
            Door {
                arrivals: door,
                leftovers,
                mailbox,
            },
            inbox,
        ))
    }

    /// Announces sleep. False when there is something to do after all.
    pub(crate) fn lie_down(&self) -> bool {
        self.mailbox.wakeup.lie_down(|| {
            self.is_empty()
                && !self.mailbox.reviewing.load(Ordering::Relaxed)
                && !self.mailbox.overflowed.load(Ordering::Relaxed)
        })
    }

    /// Whether nothing waits for the worker.
    pub(crate) fn is_empty(&self) -> bool {
        self.arrivals.is_empty() && self.signals.is_empty() && self.messages.is_empty()
    }

    pub(crate) fn get_up(&self) {
        self.mailbox.wakeup.get_up();
    }
}

impl<O> Drop for Inbox<O> {
    fn drop(&mut self) {
        // Also where the worker failed and was never told to stop.
        self.mailbox.wakeup.stop();
        clear(&self.arrivals);
        clear(&self.messages);
        let waker = self.mailbox.waker.lock().take();
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use super::Inbox;
    use crate::descriptor::Descriptor;
    use crate::poller::Poller;

    fn served() -> (UnixStream, Arc<Descriptor>) {
        let (near, far) = UnixStream::pair().expect("a pair of sockets");
        let descriptor = Descriptor::adopt(far.as_fd()).expect("a socket can be adopted");
        (near, descriptor)
    }

    fn is_closed(mut peer: UnixStream) -> bool {
        peer.read(&mut [0]).expect("an end of the stream") == 0
    }

    #[test]
    fn what_waits_at_the_end_is_closed() {
        let (_poller, waker) = Poller::new().expect("a poller");
        let (door, inbox) = Inbox::new(waker, 16, Arc::default()).expect("an inbox");
        let (before, descriptor) = served();
        assert!(door.hand_in(descriptor, ()).is_ok());
        drop(inbox);
        assert!(is_closed(before));
        let (after, descriptor) = served();
        assert!(door.hand_in(descriptor, ()).is_err());
        assert!(is_closed(after));
        assert_eq!(door.mailbox().counters().active.get(), 0);
    }

    #[test]
    fn what_comes_while_it_ends_is_closed() {
        for _ in 0..200 {
            let (_poller, waker) = Poller::new().expect("a poller");
            let (door, inbox) = Inbox::new(waker, 16, Arc::default()).expect("an inbox");
            let (peer, descriptor) = served();
            std::thread::scope(|scope| {
                scope.spawn(|| door.hand_in(descriptor, ()));
                scope.spawn(|| drop(inbox));
            });
            assert!(is_closed(peer));
        }
    }
}
