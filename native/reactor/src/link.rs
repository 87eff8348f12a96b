//! A connection as the other threads know it.
//!
//! A [`Link`] refers to one connection for as long as anybody likes: when that is over the link
//! leads nowhere, and never to another connection with the same number. What comes over it is
//! left in the connection's [`Owner`], and its engine is told to look there: one signal however
//! much there is, so that the many who write to a slow one cannot fill the inbox.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::action::Action;
use crate::counters::Counters;
use crate::descriptor::Descriptor;
use crate::inbox::{Key, Mailbox, Payload, SendError, Signal};
use crate::outbox::{Outbox, Pushed};
use crate::poller::Readiness;
use crate::reason::Reason;
use crate::service::{Admission, Service, SlowConsumer};

/// Why a message was not pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushError {
    /// The connection is over, or ends because its peer is too slow.
    Closed,
    /// As much waits as may, though the kernel has not refused any of it: the worker is busy,
    /// or the connection is paused.
    Full,
    /// The peer is slow, and by the policy of the connection this message is dropped.
    Dropped,
    /// The message is larger than all that may wait, the high-water mark.
    TooLarge,
}

impl fmt::Display for PushError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Closed => "the connection is closed",
            Self::Full => "as many messages wait as may",
            Self::Dropped => "the peer is slow; the message was dropped",
            Self::TooLarge => "the message is larger than the high-water mark",
        })
    }
}

impl std::error::Error for PushError {}

/// Wants to know when a connection is over.
pub trait Watcher: Send {
    /// Whether it does not want to know any more.
    fn is_stale(&self) -> bool;

    /// The connection is over. Called once, on its worker, which may not wait.
    fn ended(self: Box<Self>, reason: Reason);
}

/// A reference to one connection.
pub struct Link {
    id: u64,
    descriptor: Weak<Descriptor>,
    companion: OnceLock<Box<dyn Any + Send + Sync>>,
}

static LAST_ID: AtomicU64 = AtomicU64::new(0);

impl Link {
    pub(crate) fn new(descriptor: Weak<Descriptor>) -> Arc<Self> {
        Arc::new(Self {
            id: LAST_ID.fetch_add(1, Ordering::Relaxed) + 1,
            descriptor,
            companion: OnceLock::new(),
        })
    }

    /// A link to a connection that is over, known by its number.
    #[must_use]
    pub fn broken(id: u64) -> Arc<Self> {
        Arc::new(Self {
            id,
            descriptor: Weak::new(),
            companion: OnceLock::new(),
        })
    }

    /// Names the connection among all that this process ever serves.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Its descriptor, unless that is closed.
    #[must_use]
    pub fn descriptor(&self) -> Option<Arc<Descriptor>> {
        self.descriptor.upgrade()
    }

    /// What the surroundings keep with the connection: made once, by `make`, so that all who
    /// ask get the same. `None` if it is of another type.
    pub fn companion<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.companion
            .get_or_init(|| Box::new(make()))
            .downcast_ref()
    }

    /// Gives the connection a message, for
    /// [`EventHandler::handle_message`](crate::EventHandler::handle_message), or a handler's
    /// [`message`](crate::Handler::message).
    ///
    /// # Errors
    /// The connection is over, or its context holds as many messages as it may.
    pub fn send(&self, message: Payload) -> Result<(), SendError> {
        self.open(|_, owner| owner.mailbox.send(Some(owner.key), message))
            .unwrap_or(Err(SendError::Closed))
    }

    /// Gives the connection an action from outside its callbacks, for instance to end a
    /// [`Pause`](Action::Pause).
    ///
    /// # Errors
    /// The connection is over, or as much waits for its worker as may.
    pub fn resume(&self, action: Action) -> Result<(), SendError> {
        let descriptor = self.descriptor().ok_or(SendError::Closed)?;
        let owner = descriptor.owner().ok_or(SendError::Closed)?;
        owner.resume(action)
    }

    /// Gives the connection bytes to send, in one piece, without asking the protocol. They go
    /// out when the connection neither writes nor is paused.
    ///
    /// # Errors
    /// [`PushError`]; nothing was kept.
    pub fn push(&self, bytes: &[u8]) -> Result<(), PushError> {
        self.open(|descriptor, owner| owner.push(bytes, descriptor.is_blocked()))
            .unwrap_or(Err(PushError::Closed))
    }

    /// Closes the connection as if a callback had returned [`Action::Close`]. It cannot be lost.
    ///
    /// # Errors
    /// The connection is over.
    pub fn close(&self) -> Result<(), SendError> {
        self.open(|_, owner| owner.wish_for_end(&owner.wishes.close))
            .ok_or(SendError::Closed)
    }

    /// Closes the connection as if a callback had returned [`Action::Abort`]. It cannot be lost.
    ///
    /// # Errors
    /// The connection is over.
    pub fn abort(&self) -> Result<(), SendError> {
        // Also while it closes: nobody waits any longer for what is not sent.
        self.descriptor()
            .and_then(|descriptor| {
                let owner = descriptor.owner()?;
                owner.wish_for_end(&owner.wishes.abort);
                Some(())
            })
            .ok_or(SendError::Closed)
    }

    /// Tells `watcher` once when the connection is over.
    ///
    /// # Errors
    /// The connection is over already; nobody is told.
    pub fn watch(&self, watcher: Box<dyn Watcher>) -> Result<(), SendError> {
        let descriptor = self.descriptor();
        let owner = descriptor
            .as_ref()
            .and_then(|descriptor| descriptor.owner());
        let owner = owner.ok_or(SendError::Closed)?;
        // Whoever was told of the loss already, by the protocol, finds it over.
        if owner.ended.load(Ordering::Acquire) {
            return Err(SendError::Closed);
        }
        let mut watchers = owner.watchers.lock();
        let watchers = watchers.as_mut().ok_or(SendError::Closed)?;
        // Whoever watches again and again without end does not fill the memory.
        if watchers.len() == watchers.capacity() {
            watchers.retain(|watcher| !watcher.is_stale());
        }
        watchers.push(watcher);
        Ok(())
    }

    fn open<T>(&self, work: impl FnOnce(&Descriptor, &Owner) -> T) -> Option<T> {
        let descriptor = self.descriptor()?;
        let owner = descriptor.owner()?;
        (!owner.is_over()).then(|| work(&descriptor, owner))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Link({})", self.id)
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// What a connection is asked for besides actions. Each wish stands until its engine grants it.
struct Wishes {
    /// There is a wish.
    any: AtomicBool,
    /// Milliseconds from now; [`UNCHANGED`] and [`NEVER`] besides.
    timeout_ms: AtomicU64,
    hold_reading: AtomicBool,
    close_when_idle: AtomicBool,
    close: AtomicBool,
    abort: AtomicBool,
}

const UNCHANGED: u64 = u64::MAX;
const NEVER: u64 = u64::MAX - 1;

/// What its engine takes note of.
pub(crate) struct Granted {
    /// A new timeout, or none any more.
    pub(crate) timeout: Option<Option<Duration>>,
    pub(crate) hold_reading: bool,
    pub(crate) close_when_idle: bool,
    pub(crate) close: bool,
    pub(crate) abort: bool,
}

/// The connection that a descriptor belongs to.
pub struct Owner {
    key: Key,
    mailbox: Arc<Mailbox>,
    admission: Admission,
    /// What its engine counts of its service.
    shard: Arc<Counters>,
    wishes: Wishes,
    /// The lock is held for moments only: never across a system call.
    outbox: Mutex<Outbox>,
    /// What waits in the outbox; a look at it needs no lock.
    outbox_bytes: AtomicUsize,
    /// A pushed message is sent in part: nothing else may be sent before its rest.
    mid_message: AtomicBool,
    /// The peer is too slow for its policy.
    overrun: AtomicBool,
    /// Bytes that the kernel took.
    sent: AtomicU64,
    /// It closes or is closed.
    over: AtomicBool,
    /// It is closed.
    ended: AtomicBool,
    /// `None` once they were told.
    watchers: Mutex<Option<Vec<Box<dyn Watcher>>>>,
}

impl Owner {
    pub(crate) fn new(
        key: Key,
        mailbox: Arc<Mailbox>,
        admission: Admission,
        shard: Arc<Counters>,
    ) -> Self {
        let limits = *admission.service().limits();
        Self {
            key,
            mailbox,
            admission,
            shard,
            wishes: Wishes {
                any: AtomicBool::new(false),
                timeout_ms: AtomicU64::new(UNCHANGED),
                hold_reading: AtomicBool::new(false),
                close_when_idle: AtomicBool::new(false),
                close: AtomicBool::new(false),
                abort: AtomicBool::new(false),
            },
            outbox: Mutex::new(Outbox::new(limits.slow_consumer, limits.high_water)),
            outbox_bytes: AtomicUsize::new(0),
            mid_message: AtomicBool::new(false),
            overrun: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            over: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            watchers: Mutex::new(Some(Vec::new())),
        }
    }

    /// Gives the connection an action from outside its callbacks. The end of a connection is not
    /// queued behind anything: none of its callbacks for events begins after this returns, but
    /// for one that is running.
    ///
    /// # Errors
    /// The connection is over, the channel is full, or the worker has ended.
    pub fn resume(&self, action: Action) -> Result<(), SendError> {
        if self.ended.load(Ordering::Acquire) || self.mailbox.is_stopping() {
            return Err(SendError::Closed);
        }
        let wish = match action {
            Action::Close => &self.wishes.close,
            Action::Abort => &self.wishes.abort,
            Action::Continue | Action::WritePending | Action::ReadPending | Action::Pause => {
                return self.mailbox.resume(self.key, action);
            }
        };
        self.wish_for_end(wish);
        Ok(())
    }

    fn wish_for_end(&self, wish: &AtomicBool) {
        wish.store(true, Ordering::Release);
        self.ask();
    }

    /// Asks for [`Handler::timeout`](crate::Handler::timeout) once, so long from now; `None`:
    /// not at all. It takes the place of what was asked for before.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        // Rounded up: early would be a surprise.
        let ms = timeout.map_or(NEVER, |timeout| {
            let ms = timeout.as_nanos().div_ceil(1_000_000);
            u64::try_from(ms).unwrap_or(NEVER).min(NEVER)
        });
        self.wishes.timeout_ms.store(ms, Ordering::Release);
        self.ask();
    }

    /// Reads no more, or goes on reading. A peer that vanishes is noticed meanwhile.
    pub fn hold_reading(&self, hold: bool) {
        self.wishes.hold_reading.store(hold, Ordering::Release);
        self.ask();
    }

    /// Closes the connection as soon as there is nothing to read and nothing to write.
    pub fn close_when_idle(&self) {
        self.wishes.close_when_idle.store(true, Ordering::Release);
        self.ask();
    }

    /// Sets what becomes of pushed messages that the peer does not take in time.
    pub fn set_slow_consumer(&self, policy: SlowConsumer) {
        self.outbox.lock().set_policy(policy);
    }

    /// What the connection belongs to.
    #[must_use]
    pub const fn service(&self) -> &Arc<Service> {
        self.admission.service()
    }

    /// Counts something, of the context and of the service.
    pub fn count(&self, count: impl Fn(&Counters)) {
        count(self.mailbox.counters());
        count(&self.shard);
    }

    /// Whether it is closing or closed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// A simulated kernel reports this.
    pub(crate) fn is_ready(&self, readiness: Readiness) {
        self.mailbox.ready(self.key, readiness);
    }

    pub(crate) fn descriptor_gone(&self) {
        self.mailbox.must_arrive(Signal::DescriptorGone(self.key));
    }

    /// Has the engine look for wishes, unless that is in this very connection's step: it looks
    /// at the end of each.
    fn ask(&self) {
        if !self.wishes.any.swap(true, Ordering::AcqRel) && !self.mailbox.is_stepping(self.key) {
            self.mailbox.must_arrive(Signal::Look(self.key));
        }
    }

    /// Whether there is a wish that nobody has looked at yet.
    pub(crate) fn is_asked(&self) -> bool {
        self.wishes.any.load(Ordering::Acquire)
    }

    /// What is wished for, if there is anything new.
    pub(crate) fn grant(&self) -> Option<Granted> {
        let wishes = &self.wishes;
        if !wishes.any.load(Ordering::Relaxed) || !wishes.any.swap(false, Ordering::AcqRel) {
            return None;
        }
        let timeout = match wishes.timeout_ms.swap(UNCHANGED, Ordering::AcqRel) {
            UNCHANGED => None,
            NEVER => Some(None),
            ms => Some(Some(Duration::from_millis(ms))),
        };
        Some(Granted {
            timeout,
            hold_reading: wishes.hold_reading.load(Ordering::Acquire),
            close_when_idle: wishes.close_when_idle.load(Ordering::Acquire),
            close: wishes.close.load(Ordering::Acquire),
            abort: wishes.abort.load(Ordering::Acquire),
        })
    }

    fn push(&self, bytes: &[u8], refused: bool) -> Result<(), PushError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() > self.service().limits().high_water {
            return Err(PushError::TooLarge);
        }
        let message = bytes.into();
        let pushed = self.with_outbox(|outbox| outbox.push(message, refused));
        let (dropped, result) = match pushed {
            Pushed::Kept { dropped } => (dropped, Ok(())),
            Pushed::Full => (0, Err(PushError::Full)),
            Pushed::Dropped => (1, Err(PushError::Dropped)),
            Pushed::Overrun => (0, Err(PushError::Closed)),
        };
        if dropped > 0 {
            self.count(|counters| counters.drops.add(dropped));
        }
        self.ask();
        result
    }

    /// Works on the outbox; what others see of it without the lock follows.
    pub(crate) fn with_outbox<T>(&self, work: impl FnOnce(&mut Outbox) -> T) -> T {
        let mut outbox = self.outbox.lock();
        let result = work(&mut outbox);
        self.outbox_bytes.store(outbox.bytes(), Ordering::Release);
        self.mid_message
            .store(outbox.is_mid_message(), Ordering::Release);
        self.overrun.store(outbox.is_overrun(), Ordering::Release);
        result
    }

    /// Whether pushed bytes wait.
    pub(crate) fn has_output(&self) -> bool {
        self.outbox_bytes.load(Ordering::Acquire) > 0
    }

    /// Whether the kernel has taken a part of a pushed message.
    pub(crate) fn is_mid_message(&self) -> bool {
        self.mid_message.load(Ordering::Acquire)
    }

    /// Whether the peer takes pushed messages too slowly for its policy.
    pub(crate) fn is_overrun(&self) -> bool {
        self.overrun.load(Ordering::Acquire)
    }

    /// The kernel took so many bytes.
    pub(crate) fn count_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.count(|counters| counters.bytes_out.add(bytes));
    }

    /// Bytes that the kernel took so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// From here on nothing is pushed or sent to it.
    pub(crate) fn is_ending(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// It will be refused: from here on nothing is pushed or sent to it. For a handler that tells
    /// somebody so before [`connected`](crate::Handler::connected) returns.
    pub fn is_refused(&self) {
        self.is_lost();
    }

    /// From here on it cannot be resumed either: its loss is being told.
    pub(crate) fn is_lost(&self) {
        self.is_ending();
        self.ended.store(true, Ordering::Release);
    }

    /// It is over: tells everybody who wants to know.
    pub(crate) fn has_ended(&self, reason: Reason) {
        self.is_lost();
        let watchers = self.watchers.lock().take();
        for watcher in watchers.into_iter().flatten() {
            watcher.ended(reason);
        }
    }
}
