//! The way into a worker from every other thread, and what wakes it.
//!
//! Two bounded channels share one wake-up: descriptors on their way in, and signals
//! about connections that are there already. Nobody who sends ever waits.
//!
//! The wake-up costs a system call, so it is made only for a worker that sleeps. The
//! worker announces its sleep and looks at the channels once more before it lies
//! down; a sender puts its message in first and looks at the announcement after. With
//! a full fence between the two steps on both sides at least one of them sees the
//! other, so no message waits for a worker that sleeps.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;

use crate::action::Action;
use crate::counters::Counters;
use crate::descriptor::Descriptor;
use crate::poller::Readiness;

/// Names one connection of one engine for ever: the number of a slot that is used
/// again comes with another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Something that happened to a connection outside its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The demultiplexer saw this on a parked connection.
    Ready(Key, Readiness),
    /// Somebody resumes a connection, or asks it to close.
    Resume(Key, Action),
    /// The number of its descriptor was given to somebody else.
    DescriptorGone(Key),
}

/// A descriptor on its way in, with what its handler will want to know.
pub(crate) struct Arrival<O> {
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) opening: O,
    pub(crate) place: Place,
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
            Self::Full => "the context is full",
            Self::Closed => "the context has stopped",
        })
    }
}

impl std::error::Error for SendError {}

/// The part of an inbox that does not depend on what a connection opens with.
pub struct Mailbox {
    signals: Sender<Signal>,
    /// None once the worker has ended: whoever refers to a context, and be it a report in
    /// a logger, keeps no descriptor open. The lock is never held across a call.
    waker: Mutex<Option<Arc<mio::Waker>>>,
    asleep: AtomicBool,
    stopping: AtomicBool,
    overflowed: AtomicBool,
    max_connections: u64,
    counters: Arc<Counters>,
    created: Instant,
    /// Milliseconds after `created` at which the present turn began; `RESTING` between.
    turn_began_ms: AtomicU64,
}

const RESTING: u64 = u64::MAX;

impl Mailbox {
    /// Tells the worker to close everything and end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
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

    fn must_arrive(&self, signal: Signal) {
        if let Err(TrySendError::Full(_)) = self.signals.try_send(signal) {
            self.overflowed.store(true, Ordering::Release);
        }
        self.wake();
    }

    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            let waker = self.waker.lock().clone();
            // An eventfd takes a wake-up unless its counter is full, and then the
            // worker is being woken already.
            let _ = waker.map(|waker| waker.wake());
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
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
    fn take(mailbox: &Arc<Mailbox>) -> Option<Self> {
        let counters = &mailbox.counters;
        if !counters.connections.add_below(mailbox.max_connections) {
            counters.refused.add(1);
            return None;
        }
        Some(Self(Arc::clone(mailbox)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.counters.connections.subtract(1);
    }
}

/// The connection that a descriptor belongs to.
pub struct Owner {
    key: Key,
    mailbox: Arc<Mailbox>,
}

impl Owner {
    pub(crate) const fn new(key: Key, mailbox: Arc<Mailbox>) -> Self {
        Self { key, mailbox }
    }

    /// Gives the connection an action from outside its callbacks.
    ///
    /// # Errors
    /// The channel is full or the worker has ended.
    pub fn resume(&self, action: Action) -> Result<(), SendError> {
        self.mailbox.resume(self.key, action)
    }

    pub(crate) fn descriptor_gone(&self) {
        self.mailbox.must_arrive(Signal::DescriptorGone(self.key));
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.mailbox.counters
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
    /// A worker that stops clears the queue, and whoever hands in looks afterwards whether
    /// it has stopped: with a full fence between the two steps on both sides, nothing is
    /// left in a queue that nobody reads.
    ///
    /// # Errors
    /// The context is full or stops; `opening` comes back.
    pub fn hand_in(&self, descriptor: Arc<Descriptor>, opening: O) -> Result<(), (SendError, O)> {
        if self.mailbox.is_stopping() {
            return Err((SendError::Closed, opening));
        }
        let Some(place) = Place::take(&self.mailbox) else {
            return Err((SendError::Full, opening));
        };
        let arrival = Arrival {
            descriptor,
            opening,
            place,
        };
        let sent = self.arrivals.try_send(arrival);
        // Begins with a full fence.
        self.mailbox.wake();
        if self.mailbox.is_stopping() {
            clear(&self.leftovers);
        }
        match sent {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(arrival)) => Err((SendError::Full, arrival.opening)),
            // Cannot be while this door itself holds a receiver.
            Err(TrySendError::Disconnected(arrival)) => Err((SendError::Closed, arrival.opening)),
        }
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
    pub(crate) mailbox: Arc<Mailbox>,
}

/// Descriptors that may wait for their worker at one time. A worker takes them in every
/// turn; a longer queue would only hide that it is stuck.
const MAX_ARRIVALS: usize = 4096;
/// Room for signals beside one for every connection.
const SPARE_SIGNALS: usize = 1024;
/// Room is taken at once, so it has a bound; beyond it the worker looks at everybody.
const MAX_SIGNALS: usize = 64 * 1024;

impl<O> Inbox<O> {
    pub(crate) fn new(waker: mio::Waker, max_connections: usize) -> io::Result<(Door<O>, Self)> {
        if max_connections == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "max_connections must be at least 1",
            ));
        }
        let (door, arrivals) = crossbeam_channel::bounded(max_connections.min(MAX_ARRIVALS));
        let room = max_connections.min(MAX_SIGNALS) + SPARE_SIGNALS;
        let (sender, signals) = crossbeam_channel::bounded(room);
        let mailbox = Arc::new(Mailbox {
            signals: sender,
            waker: Mutex::new(Some(Arc::new(waker))),
            asleep: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            overflowed: AtomicBool::new(false),
            max_connections: max_connections as u64,
            counters: Arc::default(),
            created: Instant::now(),
            turn_began_ms: AtomicU64::new(RESTING),
        });
        let leftovers = arrivals.clone();
        let inbox = Self {
            arrivals,
            signals,
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
        self.mailbox.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let quiet = self.arrivals.is_empty()
            && self.signals.is_empty()
            && !self.mailbox.is_stopping()
            && !self.mailbox.overflowed.load(Ordering::Relaxed);
        if !quiet {
            self.get_up();
        }
        quiet
    }

    pub(crate) fn get_up(&self) {
        self.mailbox.asleep.store(false, Ordering::Relaxed);
    }
}

impl<O> Drop for Inbox<O> {
    fn drop(&mut self) {
        // Also where the worker failed and was never told to stop.
        self.mailbox.stopping.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        clear(&self.arrivals);
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
        let (door, inbox) = Inbox::new(waker, 16).expect("an inbox");
        let (before, descriptor) = served();
        assert!(door.hand_in(descriptor, ()).is_ok());
        drop(inbox);
        assert!(is_closed(before));
        let (after, descriptor) = served();
        assert!(door.hand_in(descriptor, ()).is_err());
        assert!(is_closed(after));
        assert_eq!(door.mailbox().counters().connections.get(), 0);
    }

    #[test]
    fn what_comes_while_it_ends_is_closed() {
        for _ in 0..200 {
            let (_poller, waker) = Poller::new().expect("a poller");
            let (door, inbox) = Inbox::new(waker, 16).expect("an inbox");
            let (peer, descriptor) = served();
            std::thread::scope(|scope| {
                scope.spawn(|| door.hand_in(descriptor, ()));
                scope.spawn(|| drop(inbox));
            });
            assert!(is_closed(peer));
        }
    }
}
