//! A service: what the connections of one listener share, in whichever engine each of them is.
//!
//! It says how long they may be silent and how much they may buffer, counts them, gives out
//! their places, and knows when they are to end. No engine keeps a list of services: each
//! connection refers to its own, and an engine that is asked to
//! [`review`](crate::Mailbox::review) its connections looks at the stage of each one's.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::time::Duration;

use parking_lot::Mutex;

use crate::counters::Counters;

/// How long a connection may take, and how much it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest time without a byte in either direction, while it is not paused.
    pub idle_timeout: Option<Duration>,
    /// The longest time until a callback that brought something says another action than
    /// [`Continue`](crate::Action::Continue).
    pub handshake_timeout: Option<Duration>,
    /// The longest time for which the kernel takes none of what is to be sent.
    pub write_timeout: Option<Duration>,
    /// Above so many bytes to be sent nothing more is read, nor taken to be pushed.
    pub high_water: usize,
    /// Below so many bytes to be sent reading goes on.
    pub low_water: usize,
    /// What becomes of a peer that takes pushed messages too slowly.
    pub slow_consumer: SlowConsumer,
}

impl Default for Limits {
    /// Silence is no fault of a connection, a peer that takes nothing is: nginx and Apache
    /// wait a minute for it (`send_timeout`, `TimeOut`). The marks are those of Python's asyncio.
    fn default() -> Self {
        Self {
            idle_timeout: None,
            handshake_timeout: None,
            write_timeout: Some(Duration::from_secs(60)),
            high_water: 64 * 1024,
            low_water: 16 * 1024,
            slow_consumer: SlowConsumer::Buffer(1024),
        }
    }
}

/// What becomes of pushed messages that the peer does not take in time. Where it is not the peer
/// that is slow none is taken beyond the limit, and the connection lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowConsumer {
    /// The oldest that wait make room for the newest.
    DropOld,
    /// The newest is not taken.
    DropNew,
    /// So many messages may wait; with the next the connection ends.
    Buffer(usize),
    /// None may wait for the peer: what the kernel does not take at once ends the connection.
    Disconnect,
}

/// How far a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Connections live as long as they like.
    Serving,
    /// They are asked to end.
    Draining,
    /// They end.
    Ending,
}

type Notice = Box<dyn FnOnce() + Send>;

/// Told once, as soon as the number of connections lies in the range.
struct Watcher {
    range: RangeInclusive<u64>,
    is_stale: Box<dyn Fn() -> bool + Send>,
    notice: Box<dyn FnOnce(u64) + Send>,
}

/// What the connections of one listener share.
pub struct Service {
    name: String,
    limits: Limits,
    /// What is counted outside of engines: places, and those who got none.
    counters: Counters,
    /// What each engine counts by itself, so that no two of them write to the same number.
    shards: Mutex<Vec<Arc<Counters>>>,
    max_connections: AtomicU64,
    stage: AtomicU8,
    /// Who waits for a place.
    waiting: Mutex<Vec<Notice>>,
    watchers: Mutex<Vec<Watcher>>,
    /// Whether somebody watches the number of connections: spares the lock for each of them.
    watched: AtomicBool,
}

impl Service {
    /// A service without connections. Its name is for reports.
    #[must_use]
    pub fn new(name: String, limits: Limits, max_connections: u64) -> Arc<Self> {
        Arc::new(Self {
            name,
            limits,
            counters: Counters::default(),
            shards: Mutex::default(),
            max_connections: AtomicU64::new(max_connections),
            stage: AtomicU8::new(Stage::Serving as u8),
            waiting: Mutex::default(),
            watchers: Mutex::default(),
            watched: AtomicBool::new(false),
        })
    }

    /// By which people know it; empty for connections that no listener accepted.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its connections may do.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What is counted of all its connections, as it is now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let sum = Counters::default();
        let shards = self.shards.lock();
        sum.merge(&self.counters);
        for shard in &*shards {
            sum.merge(shard);
        }
        sum
    }

    /// A client was turned away.
    pub fn refused(&self) {
        self.counters.refused.add(1);
    }

    /// What one more engine counts with.
    pub(crate) fn shard(&self) -> Arc<Counters> {
        let mut shards = self.shards.lock();
        // The engines of these have ended, or have no connection of the service any more.
        for ended in shards.extract_if(.., |shard| Arc::strong_count(shard) == 1) {
            // Whoever let it go has written to it before.
            fence(Ordering::Acquire);
            self.counters.merge(&ended);
        }
        let shard = Arc::default();
        shards.push(Arc::clone(&shard));
        shard
    }

    /// Connections that are open now, or on their way in.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.counters.active.get()
    }

    /// Connections that may be open at one time.
    #[must_use]
    pub fn max_connections(&self) -> u64 {
        self.max_connections.load(Ordering::Relaxed)
    }

    /// Changes the number of places. Connections beyond it live on.
    pub fn set_max_connections(&self, max_connections: u64) {
        self.max_connections
            .store(max_connections, Ordering::Relaxed);
        // Against the one in `when_free`: either the new number is seen there, or who waits here.
        fence(Ordering::SeqCst);
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for notice in waiting {
            notice();
        }
    }

    /// Takes a place, if there is one.
    #[must_use]
    pub fn admit(self: &Arc<Self>) -> Option<Admission> {
        if !self.counters.active.add_below(self.max_connections()) {
            return None;
        }
        self.tell_watchers();
        Some(Admission(Arc::clone(self)))
    }

    /// Calls `notice` once, on any thread, as soon as there is a place, at once if there is
    /// one. It may be taken by then: who is told tries again.
    pub fn when_free(&self, notice: Box<dyn FnOnce() + Send>) {
        self.waiting.lock().push(notice);
        fence(Ordering::SeqCst);
        if self.active() < self.max_connections() {
            self.tell_one();
        }
    }

    /// Calls `notice` once, on any thread, as soon as the number of connections lies in
    /// `range`, at once if it does. Once `is_stale` says that nobody wants to know any more, it
    /// may be forgotten instead.
    pub fn when_active(
        &self,
        range: RangeInclusive<u64>,
        is_stale: Box<dyn Fn() -> bool + Send>,
        notice: Box<dyn FnOnce(u64) + Send>,
    ) {
        let watcher = Watcher {
            range,
            is_stale,
            notice,
        };
        let mut watchers = self.watchers.lock();
        // Whoever waits and gives up again and again does not fill the memory, nor make every
        // connection look at all of it.
        if watchers.len() == watchers.capacity() {
            watchers.retain(|watcher| !(watcher.is_stale)());
        }
        watchers.push(watcher);
        drop(watchers);
        self.watched.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.tell_watchers();
    }

    /// How far it is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Serving,
            1 => Stage::Draining,
            _ => Stage::Ending,
        }
    }

    /// Goes to another stage. Connections that are there hear of it when their engine
    /// [reviews](crate::Mailbox::review) them, later ones when they come.
    pub fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    fn leave(&self) {
        self.counters.active.subtract(1);
        // Against the one in `when_free` and `when_active`.
        fence(Ordering::SeqCst);
        if self.active() < self.max_connections() {
            self.tell_one();
        }
        self.tell_watchers();
    }

    fn tell_one(&self) {
        let notice = self.waiting.lock().pop();
        if let Some(notice) = notice {
            notice();
        }
    }

    fn tell_watchers(&self) {
        if !self.watched.load(Ordering::Relaxed) {
            return;
        }
        let mut watchers = self.watchers.lock();
        // Only now: they have not asked about what was before.
        let active = self.active();
        let told: Vec<Watcher> = watchers
            .extract_if(.., |watcher| watcher.range.contains(&active))
            .collect();
        self.watched.store(!watchers.is_empty(), Ordering::Relaxed);
        drop(watchers);
        for watcher in told {
            (watcher.notice)(active);
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Service")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .field("stage", &self.stage())
            .finish_non_exhaustive()
    }
}

/// A place among the connections of a service, given back when it is dropped.
#[derive(Debug)]
pub struct Admission(Arc<Service>);

impl Admission {
    /// The service that it is a place of.
    #[must_use]
    pub const fn service(&self) -> &Arc<Service> {
        &self.0
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
impl Service {
    /// How many engines count for it.
    pub(crate) fn shards(&self) -> usize {
        self.shards.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::{Limits, Service};

    fn counting(count: &Arc<AtomicU64>) -> Box<dyn FnOnce() + Send> {
        let count = Arc::clone(count);
        Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        })
    }

    #[test]
    fn no_more_are_admitted_than_there_are_places() {
        let service = Service::new(String::new(), Limits::default(), 2);
        let first = service.admit().expect("a place");
        let _second = service.admit().expect("a place");
        assert!(service.admit().is_none());
        drop(first);
        assert!(service.admit().is_some());
    }

    #[test]
    fn who_waits_is_told_once_of_a_place() {
        let service = Service::new(String::new(), Limits::default(), 1);
        let told = Arc::new(AtomicU64::new(0));
        let taken = service.admit().expect("a place");
        service.when_free(counting(&told));
        assert_eq!(told.load(Ordering::SeqCst), 0);
        drop(taken);
        drop(service.admit());
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_waits_is_told_at_once_when_there_is_a_place() {
        let service = Service::new(String::new(), Limits::default(), 1);
        let told = Arc::new(AtomicU64::new(0));
        service.when_free(counting(&told));
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn more_places_are_told_to_everybody_who_waits() {
        let service = Service::new(String::new(), Limits::default(), 0);
        let told = Arc::new(AtomicU64::new(0));
        service.when_free(counting(&told));
        service.when_free(counting(&told));
        service.set_max_connections(1);
        assert_eq!(told.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn fewer_places_end_nobody() {
        let service = Service::new(String::new(), Limits::default(), 2);
        let both = (service.admit(), service.admit());
        service.set_max_connections(1);
        assert_eq!(service.active(), 2);
        drop(both.0);
        assert!(service.admit().is_none());
    }

    #[test]
    fn a_watcher_hears_of_the_number_it_waits_for() {
        let service = Service::new(String::new(), Limits::default(), 9);
        let seen = Arc::new(AtomicU64::new(99));
        let note = Arc::clone(&seen);
        let places: Vec<_> = (0..3).map(|_| service.admit().expect("a place")).collect();
        let notice = Box::new(move |n| note.store(n, Ordering::SeqCst));
        service.when_active(0..=1, Box::new(|| false), notice);
        let mut places = places.into_iter();
        drop(places.next());
        assert_eq!(seen.load(Ordering::SeqCst), 99);
        drop(places.next());
        assert_eq!(seen.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_place_that_is_freed_while_somebody_begins_to_wait_is_told() {
        for _ in 0..2000 {
            let service = Service::new(String::new(), Limits::default(), 1);
            let told = Arc::new(AtomicU64::new(0));
            let taken = service.admit().expect("a place");
            thread::scope(|scope| {
                scope.spawn(|| drop(taken));
                scope.spawn(|| service.when_free(counting(&told)));
            });
            assert_eq!(told.load(Ordering::SeqCst), 1);
        }
    }

    #[test]
    fn watchers_that_gave_up_are_forgotten() {
        let service = Service::new(String::new(), Limits::default(), 9);
        let told = Arc::new(AtomicU64::new(0));
        for number in 0..10_000 {
            let is_stale = Box::new(move || number % 1000 != 0);
            let note = counting(&told);
            service.when_active(1..=1, is_stale, Box::new(move |_| note()));
        }
        let kept = service.watchers.lock().len();
        assert!(kept < 100, "{kept} are kept");
        let _place = service.admit();
        assert!(told.load(Ordering::SeqCst) >= 10);
    }
}
