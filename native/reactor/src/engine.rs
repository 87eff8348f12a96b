//! The loop: one thread, its connections, and the turns in which they are served.
//!
//! A turn collects what the kernel and other threads have to say, then gives every
//! connection with something to do one step: one read and its callback, or one write.
//! Who has more to do queues up again behind the others. When nobody has anything to do
//! the worker sleeps, and only then are long silent connections parked in the
//! demultiplexer: under load nothing is ever parked.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::action::Action;
use crate::connection::{Connection, Slots, Watch};
use crate::demultiplexer::{Demultiplexer, Interest};
use crate::descriptor::{Kind, Received};
use crate::handler::{Flushed, Handler, Verdict};
use crate::inbox::{Arrival, Door, Inbox, Key, Mailbox, Owner, Signal};
use crate::poller::{Poller, Readiness};
use crate::reason::Reason;
use crate::state::{Effect, Input, State};

/// The most that one read brings: large enough for throughput, small enough that one
/// busy peer does not keep the others waiting.
pub const MAX_READ_BYTES: usize = 64 * 1024;
/// Unix datagrams may be as long as a socket's send buffer, by default 208 KiB.
const MAX_DATAGRAM_BYTES: usize = 256 * 1024;
/// Steps between two looks at the kernel and the inbox.
const STEPS_PER_TURN: usize = 512;
/// Descriptors that come in between two looks at those that are there.
const ARRIVALS_PER_TURN: usize = 64;
/// Connections parked between two looks at the kernel.
const PARKINGS_PER_REST: usize = 32;

/// How an engine behaves.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Connections at most; more are turned away.
    pub max_connections: usize,
    /// Silence after which an idle connection is parked; `None`: never.
    pub linger: Option<Duration>,
}

/// Whether there will be another turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Call again.
    Again,
    /// The engine was stopped; every connection is closed.
    Stopped,
}

/// What an engine stands on. Unlike the engine it may go to another thread, which is then
/// the engine's: so a door is open before its worker runs.
pub struct Groundwork<O> {
    poller: Poller,
    inbox: Inbox<O>,
    linger: Option<Duration>,
}

impl<O> Groundwork<O> {
    /// Opens what the engine will wait on, and the door through which connections come.
    ///
    /// # Errors
    /// The process has no descriptor left, or `max_connections` is 0.
    pub fn lay(settings: Settings) -> io::Result<(Self, Door<O>)> {
        let (poller, waker) = Poller::new()?;
        let (door, inbox) = Inbox::new(waker, settings.max_connections)?;
        let linger = settings.linger;
        Ok((
            Self {
                poller,
                inbox,
                linger,
            },
            door,
        ))
    }
}

/// The event loop of one context.
pub struct Engine<H: Handler, D: Demultiplexer> {
    poller: Poller,
    inbox: Inbox<H::Opening>,
    demultiplexer: D,
    slots: Slots<H::Connection, D::Seat>,
    ready: VecDeque<Key>,
    linger: Option<Duration>,
    buffer: Box<[u8]>,
    now: Instant,
}

impl<H: Handler, D: Demultiplexer> Engine<H, D> {
    /// An engine without connections, and the door through which they come.
    ///
    /// # Errors
    /// The process has no descriptor left, or `max_connections` is 0.
    pub fn new(settings: Settings, demultiplexer: D) -> io::Result<(Self, Door<H::Opening>)> {
        let (groundwork, door) = Groundwork::lay(settings)?;
        Ok((Self::on(groundwork, demultiplexer), door))
    }

    /// An engine on groundwork that another thread may have laid.
    #[must_use]
    pub fn on(groundwork: Groundwork<H::Opening>, demultiplexer: D) -> Self {
        let Groundwork {
            poller,
            inbox,
            linger,
        } = groundwork;
        Self {
            poller,
            inbox,
            demultiplexer,
            slots: Slots::new(),
            ready: VecDeque::new(),
            linger,
            buffer: vec![0; MAX_DATAGRAM_BYTES].into_boxed_slice(),
            now: Instant::now(),
        }
    }

    /// One turn. It sleeps for `limit` at most, without end if that is `None`, and not at
    /// all while there is something to do.
    ///
    /// # Errors
    /// The poller failed, as when somebody closes its descriptor. The engine cannot go on;
    /// every connection is closed.
    pub fn turn(&mut self, handler: &mut H, limit: Option<Duration>) -> io::Result<Turn> {
        let turn = self.try_turn(handler, limit);
        if turn.is_err() {
            self.stop(handler);
        }
        turn
    }

    fn try_turn(&mut self, handler: &mut H, limit: Option<Duration>) -> io::Result<Turn> {
        if self.ready.is_empty() {
            self.rest(handler, limit)?;
        } else {
            self.poller.wait(Some(Duration::ZERO))?;
        }
        self.now = Instant::now();
        self.mailbox().begin_turn(self.now);
        self.collect();
        self.take_signals(handler);
        if self.mailbox().is_stopping() {
            self.stop(handler);
            return Ok(Turn::Stopped);
        }
        self.take_arrivals(handler);
        // One step each: whoever queues up again waits for those who spoke meanwhile.
        for _ in 0..self.ready.len().min(STEPS_PER_TURN) {
            let Some(key) = self.ready.pop_front() else {
                break;
            };
            // It may have ended since, and its slot may be somebody else's.
            if self.slots.find(key).is_some() {
                self.guarded(handler, key.slot, Self::step);
            }
        }
        self.mailbox().end_turn();
        Ok(Turn::Again)
    }

    /// What this engine counts, and where others reach it.
    #[must_use]
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.inbox.mailbox
    }

    /// Sleeps until there is something to do, after parking who has been silent too long.
    fn rest(&mut self, handler: &mut H, limit: Option<Duration>) -> io::Result<()> {
        self.now = Instant::now();
        if self.until_next_parking() == Some(Duration::ZERO) {
            // Parking is for the moment when there is nothing else to do.
            self.poller.wait(Some(Duration::ZERO))?;
            if self.poller.events().next().is_some() {
                return Ok(());
            }
            self.park_silent(handler);
        }
        let timeout = match (limit, self.until_next_parking()) {
            (Some(limit), Some(parking)) => Some(limit.min(parking)),
            (limit, parking) => limit.or(parking),
        };
        if self.ready.is_empty() && self.inbox.lie_down() {
            let poller = &mut self.poller;
            let slept = handler.idle(|| poller.wait(timeout));
            self.inbox.get_up();
            slept
        } else {
            self.poller.wait(Some(Duration::ZERO))
        }
    }

    /// Notes what the poller reports.
    fn collect(&mut self) {
        for (key, readiness) in self.poller.events() {
            // A stale key is the echo of a descriptor that somebody else closed.
            if let Some(connection) = self.slots.find(key) {
                connection.note(readiness);
                enqueue(&mut self.ready, connection, key);
            }
        }
    }

    fn take_signals(&mut self, handler: &mut H) {
        // No more than there are now: whoever sends without end, even from a callback of
        // this very loop, waits for the next turn.
        for _ in 0..self.inbox.signals.len() {
            let Ok(signal) = self.inbox.signals.try_recv() else {
                break;
            };
            match signal {
                Signal::Ready(key, readiness) => {
                    self.mailbox().counters().wakes.add(1);
                    self.unpark(key, readiness);
                }
                Signal::Resume(key, action) => {
                    if self.slots.find(key).is_some() {
                        self.unpark(key, Readiness::default());
                        self.guarded(handler, key.slot, |engine, handler, slot| {
                            engine.apply(handler, slot, Ok(action));
                            engine.settle(handler, slot);
                        });
                    }
                }
                Signal::DescriptorGone(key) => {
                    if self.slots.find(key).is_some() {
                        self.end(handler, key.slot, Reason::DescriptorGone);
                    }
                }
            }
        }
        if self.mailbox().take_overflow() {
            for slot in self.slots.numbers() {
                let key = self.slots.key_of(slot);
                self.unpark(key, Readiness::ANY);
            }
        }
    }

    /// Takes a connection back from the demultiplexer, which may go on watching it: its
    /// report then only says what the poller says too.
    fn unpark(&mut self, key: Key, readiness: Readiness) {
        let Some(connection) = self.slots.find(key) else {
            return;
        };
        if connection.watch == Watch::Parked {
            connection.watch = Watch::Nobody;
            self.inbox.mailbox.counters().parked.subtract(1);
        }
        connection.note(readiness);
        enqueue(&mut self.ready, connection, key);
    }

    fn take_arrivals(&mut self, handler: &mut H) {
        for _ in 0..ARRIVALS_PER_TURN {
            let Ok(arrival) = self.inbox.arrivals.try_recv() else {
                return;
            };
            self.adopt(handler, arrival);
        }
    }

    fn adopt(&mut self, handler: &mut H, arrival: Arrival<H::Opening>) {
        let Arrival {
            descriptor,
            opening,
            place,
        } = arrival;
        let key = self.slots.next_key();
        let mailbox = Arc::clone(self.mailbox());
        descriptor.owned_by(Owner::new(key, Arc::clone(&mailbox)));
        mailbox.counters().adopted.add(1);
        let opened = catch_unwind(AssertUnwindSafe(|| handler.connected(&descriptor, opening)));
        let opened = opened.unwrap_or_else(|panic| {
            handler.panicked(&descriptor, panic_message(&*panic));
            None
        });
        match opened {
            Some((user, verdict)) => {
                let slot = key.slot;
                let connection = Connection::new(descriptor, user, place, self.now);
                self.slots.fill(key, connection);
                self.guarded(handler, slot, |engine, handler, slot| {
                    engine.apply(handler, slot, verdict);
                    engine.settle(handler, slot);
                });
            }
            None => {
                self.slots.skip(key);
                mailbox.counters().closed.add(1);
            }
        }
    }

    /// One step of one connection. A panic costs that connection.
    fn guarded(&mut self, handler: &mut H, slot: u32, step: impl FnOnce(&mut Self, &mut H, u32)) {
        let result = catch_unwind(AssertUnwindSafe(|| step(self, handler, slot)));
        if let Err(panic) = result
            && let Some(connection) = self.slots.get(slot)
        {
            handler.panicked(&connection.descriptor, panic_message(&*panic));
            self.end(handler, slot, Reason::Exception);
        }
    }

    fn step(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        connection.queued = false;
        match connection.state {
            State::Reading if connection.readable && !connection.eof => self.read(handler, slot),
            State::Writing if !connection.descriptor.is_blocked() => self.write(handler, slot),
            State::Closing if !connection.descriptor.is_blocked() => self.flush(handler, slot),
            State::Reading | State::Writing | State::Closing | State::Paused => {
                self.look_for_peer(handler, slot);
            }
            State::Closed => {}
        }
        self.settle(handler, slot);
    }

    fn read(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        let descriptor = &connection.descriptor;
        let size = if descriptor.kind().is_datagram() {
            MAX_DATAGRAM_BYTES
        } else {
            MAX_READ_BYTES
        };
        let counters = self.inbox.mailbox.counters();
        let verdict = match descriptor.receive(&mut self.buffer[..size]) {
            Ok(Received::Data { length, drained }) => {
                connection.readable = !drained || connection.hung_up;
                counters.bytes_in.add(length as u64);
                handler.readable(&mut connection.user, descriptor, &self.buffer[..length])
            }
            Ok(Received::Datagram { length }) => {
                counters.bytes_in.add(length as u64);
                handler.readable(&mut connection.user, descriptor, &self.buffer[..length])
            }
            Ok(Received::Eof) => {
                connection.readable = false;
                connection.eof = true;
                connection.reason = Reason::Eof;
                handler.eof(&mut connection.user, descriptor)
            }
            Ok(Received::WouldBlock) => {
                connection.readable = false;
                // Had it been a real hang-up, this would have been the end of the stream.
                connection.hung_up = false;
                return;
            }
            Err(errno) => Err(Reason::Failed(errno)),
        };
        self.apply(handler, slot, verdict);
    }

    fn write(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        let verdict = handler.writable(&mut connection.user, &connection.descriptor);
        self.apply(handler, slot, verdict);
    }

    fn flush(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        match handler.flush(&mut connection.user, &connection.descriptor) {
            Flushed::All => self.enter(handler, slot, Input::Flushed),
            Flushed::Blocked => {}
            Flushed::Failed(reason) => self.end(handler, slot, reason),
        }
    }

    /// Does what a callback asked for.
    fn apply(&mut self, handler: &mut H, slot: u32, verdict: Verdict) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        if connection.descriptor.is_gone() {
            self.end(handler, slot, Reason::DescriptorGone);
        } else if let Some(errno) = connection.descriptor.fault() {
            self.end(handler, slot, Reason::Failed(errno));
        } else {
            match verdict {
                Ok(action) => {
                    match action {
                        Action::Abort => connection.reason = Reason::Aborted,
                        Action::Close if !connection.eof => connection.reason = Reason::Closed,
                        _ => {}
                    }
                    self.enter(handler, slot, Input::Act(action));
                }
                Err(reason) => self.end(handler, slot, reason),
            }
        }
    }

    /// Moves a connection along the table and performs the effect. A write that follows a
    /// read is tried at once: the kernel nearly always takes it.
    fn enter(&mut self, handler: &mut H, slot: u32, input: Input) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        let (state, effect) = connection.state.on(input);
        let just_began = state != connection.state;
        connection.state = state;
        let blocked = connection.descriptor.is_blocked();
        match effect {
            Effect::Write if just_began && !blocked => self.write(handler, slot),
            Effect::Flush if just_began && !blocked => self.flush(handler, slot),
            Effect::Retire => self.retire(handler, slot),
            Effect::Write | Effect::Flush | Effect::Ignore => {}
            // The kernel announced its death once; it may be all that we wait for now.
            Effect::AwaitData | Effect::Hold => self.look_for_peer(handler, slot),
        }
    }

    /// A connection that neither reads nor writes hears of its peer's death only here. A
    /// reset discards what was not read; elsewhere unread data is kept for the reader. A
    /// terminal whose other side is closed stays full for ever.
    fn look_for_peer(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        let descriptor = &connection.descriptor;
        if descriptor.is_gone() {
            self.end(handler, slot, Reason::DescriptorGone);
        } else if connection.dead {
            let paused = connection.state == State::Paused;
            let unheard = paused && (descriptor.kind() == Kind::Tcp || descriptor.peer_is_gone());
            if connection.eof || unheard || connection.awaits_room() {
                self.end(handler, slot, Reason::PeerGone);
            }
        }
    }

    /// Decides who looks after a connection until its next step.
    fn settle(&mut self, handler: &mut H, slot: u32) {
        let key = self.slots.key_of(slot);
        let Some(connection) = self.slots.find(key) else {
            return;
        };
        if connection.is_busy() {
            enqueue(&mut self.ready, connection, key);
        }
        let watched = match connection.watch {
            Watch::Nobody if connection.queued => Ok(()),
            // Its number may be a stranger's by now, and nobody is to watch that.
            Watch::Nobody if !connection.descriptor.is_still_ours() => {
                self.end(handler, slot, Reason::DescriptorGone);
                return;
            }
            Watch::Nobody if self.linger == Some(Duration::ZERO) && connection.may_park() => {
                self.park(handler, slot);
                return;
            }
            Watch::Nobody => {
                let write = connection.awaits_room();
                self.poller
                    .add(&connection.descriptor, key, write)
                    .map(|()| {
                        connection.watch = Watch::Poller { write };
                    })
            }
            // Registered for room to write once, it stays so: the kernel reports room
            // only to those it had refused.
            Watch::Poller { write: false } if connection.awaits_room() => self
                .poller
                .add_write(&connection.descriptor, key)
                .map(|()| {
                    connection.watch = Watch::Poller { write: true };
                }),
            Watch::Poller { .. } | Watch::Parked => Ok(()),
        };
        match watched {
            Ok(()) if connection.may_park() && self.linger.is_some() => {
                self.slots.fell_silent(slot, self.now);
            }
            Ok(()) => self.slots.forget_silence(slot),
            Err(error) => self.end(handler, slot, watch_failure(&error)),
        }
    }

    /// How long until somebody has been silent for the linger; zero if somebody has.
    fn until_next_parking(&mut self) -> Option<Duration> {
        let linger = self.linger?;
        let slot = self.slots.most_silent()?;
        let connection = self.slots.get(slot)?;
        let parking = connection.spoke_at.checked_add(linger)?;
        Some(parking.saturating_duration_since(self.now))
    }

    fn park_silent(&mut self, handler: &mut H) {
        for _ in 0..PARKINGS_PER_REST {
            if self.until_next_parking() != Some(Duration::ZERO) {
                return;
            }
            if let Some(slot) = self.slots.most_silent() {
                self.guarded(handler, slot, Self::park);
            }
        }
    }

    /// Gives a connection to the demultiplexer.
    fn park(&mut self, handler: &mut H, slot: u32) {
        self.slots.forget_silence(slot);
        let key = self.slots.key_of(slot);
        let Some(connection) = self.slots.find(key) else {
            return;
        };
        if matches!(connection.watch, Watch::Poller { .. })
            && self.poller.remove(&connection.descriptor).is_err()
        {
            // epoll forgets a descriptor only when it is closed: somebody closed it.
            self.end(handler, slot, Reason::DescriptorGone);
            return;
        }
        let mailbox = &self.inbox.mailbox;
        let interest = if connection.awaits_room() {
            Interest::Write
        } else {
            Interest::Read
        };
        let seat = match connection.seat.take() {
            Some(seat) => Ok(seat),
            None => self
                .demultiplexer
                .seat(key, &connection.descriptor, mailbox),
        };
        let armed = seat.and_then(|seat| {
            let armed = self.demultiplexer.arm(&seat, interest);
            connection.seat = Some(seat);
            armed
        });
        if armed.is_ok() {
            connection.watch = Watch::Parked;
            mailbox.counters().parked.add(1);
            mailbox.counters().parkings.add(1);
        } else {
            connection.unparkable = true;
            connection.watch = Watch::Nobody;
            self.settle(handler, slot);
        }
    }

    /// Ends a connection for a reason that its protocol did not give.
    fn end(&mut self, handler: &mut H, slot: u32, reason: Reason) {
        if let Some(connection) = self.slots.get(slot) {
            connection.reason = reason;
        }
        self.enter(handler, slot, Input::Lost);
    }

    /// The one way out: report the loss, watch no more, close.
    fn retire(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.remove(slot) else {
            return;
        };
        let Connection {
            descriptor,
            user,
            reason,
            readable,
            eof,
            watch,
            seat,
            ..
        } = connection;
        if watch == Watch::Parked {
            self.mailbox().counters().parked.subtract(1);
        }
        if matches!(watch, Watch::Poller { .. }) && !descriptor.is_gone() {
            // Fails only where the descriptor is gone already, and with it the entry.
            let _ = self.poller.remove(&descriptor);
        }
        let lost = catch_unwind(AssertUnwindSafe(|| handler.lost(user, &descriptor, reason)));
        if let Err(panic) = lost {
            handler.panicked(&descriptor, panic_message(&*panic));
        }
        if matches!(reason, Reason::Closed | Reason::Stopped) && readable && !eof {
            descriptor.finish(&mut self.buffer);
        }
        self.mailbox().counters().closed.add(1);
        if let Some(seat) = seat {
            self.demultiplexer.retire(seat);
        }
    }

    /// Closes everything, after one try to send what is buffered.
    fn stop(&mut self, handler: &mut H) {
        for slot in self.slots.numbers() {
            if let Some(connection) = self.slots.get(slot) {
                let Connection {
                    user, descriptor, ..
                } = connection;
                let flushed = catch_unwind(AssertUnwindSafe(|| handler.flush(user, descriptor)));
                if let Err(panic) = flushed {
                    handler.panicked(descriptor, panic_message(&*panic));
                }
                self.end(handler, slot, Reason::Stopped);
            }
        }
        self.mailbox().end_turn();
    }
}

fn enqueue<C, S>(ready: &mut VecDeque<Key>, connection: &mut Connection<C, S>, key: Key) {
    if !connection.queued {
        connection.queued = true;
        ready.push_back(key);
    }
}

/// Why a connection ends that the poller does not take: it knows every open descriptor
/// of the kinds that are adopted.
fn watch_failure(error: &io::Error) -> Reason {
    match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::EBADF | Errno::ENOENT => Reason::DescriptorGone,
        other => Reason::Failed(other),
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}
