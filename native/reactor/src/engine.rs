//! The loop: one thread, its connections, and the turns in which they are served.
//!
//! A turn collects what the kernel and other threads have to say, then gives every
//! connection with something to do one step: one read and its callback, or one write.
//! Who has more to do queues up again behind the others. When nobody has anything to do
//! the worker sleeps, and only then are long silent connections parked in the
//! demultiplexer: under load nothing is ever parked.

mod arrivals;
mod outside;
mod parking;
mod time;

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::action::Action;
use crate::clock::Clock;
use crate::connection::{Connection, Slots, Watch};
use crate::counters::Counters;
use crate::demultiplexer::Demultiplexer;
use crate::descriptor::Received;
use crate::handler::{Flushed, Handler, Verdict};
use crate::inbox::{Door, Inbox, Key, Mailbox};
use crate::kind::Kind;
use crate::poller::Poller;
use crate::reason::Reason;
use crate::shards::Shards;
use crate::source::Sources;
use crate::state::{Effect, Input, State};
use crate::timers::Timers;

/// The most that one read brings: large enough for throughput, small enough that one busy peer does
/// not keep the others waiting. A copy of it stays below 128 KiB: where malloc(3) finds more than
/// that by a mapping of its own (`M_MMAP_THRESHOLD`), each read would be paid with page faults.
pub const MAX_READ_BYTES: usize = 120 * 1024;
/// Unix datagrams may be as long as a socket's send buffer, by default 208 KiB.
const MAX_DATAGRAM_BYTES: usize = 256 * 1024;
/// Steps between two looks at the kernel and the inbox.
const STEPS_PER_TURN: usize = 512;

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
        Self::lay_with(settings, Arc::default())
    }

    /// The same, to count on with numbers that are there already.
    ///
    /// # Errors
    /// As [`lay`](Self::lay).
    pub fn lay_with(settings: Settings, counters: Arc<Counters>) -> io::Result<(Self, Door<O>)> {
        let (poller, waker) = Poller::new()?;
        let (door, inbox) = Inbox::new(waker, settings.max_connections, counters)?;
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
    timers: Timers,
    sources: Sources<H::Opening>,
    shards: Shards,
    linger: Option<Duration>,
    buffer: Box<[u8]>,
    clock: Clock,
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
        inbox.mailbox.is_served_here();
        Self {
            poller,
            inbox,
            demultiplexer,
            slots: Slots::new(),
            ready: VecDeque::new(),
            timers: Timers::default(),
            sources: Sources::new(),
            shards: Shards::default(),
            linger,
            buffer: vec![0; MAX_DATAGRAM_BYTES].into_boxed_slice(),
            clock: Clock::System,
            now: Instant::now(),
        }
    }

    /// Moves its time forward: from here on it stands until it is moved again.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.clock.advance(by);
        self.now = self.clock.now();
    }

    /// Whether a turn would find nothing to do, unless the kernel had something to say.
    pub(crate) fn is_quiet(&self) -> bool {
        self.ready.is_empty()
            && !self.sources.are_ready()
            && self.inbox.is_empty()
            && self.until_next_timer() != Some(Duration::ZERO)
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
        if self.ready.is_empty() && !self.sources.are_ready() {
            self.rest(handler, limit)?;
        } else {
            self.poller.wait(Some(Duration::ZERO))?;
        }
        self.now = self.clock.now();
        self.mailbox().begin_turn(self.now);
        let ready = self.ready.len() as u64;
        self.mailbox().counters().queue_depth.set(ready);
        self.collect();
        self.take_signals(handler);
        if self.mailbox().is_stopping() {
            self.stop(handler);
            return Ok(Turn::Stopped);
        }
        self.expire(handler);
        self.take_messages(handler);
        if self.mailbox().take_review() {
            for slot in self.slots.numbers() {
                self.review(handler, slot);
            }
        }
        self.take_arrivals(handler);
        self.accept(handler);
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
        self.now = self.clock.now();
        if self.until_next_parking() == Some(Duration::ZERO) {
            // Parking is for the moment when there is nothing else to do.
            self.poller.wait(Some(Duration::ZERO))?;
            if self.poller.events().next().is_some() {
                return Ok(());
            }
            self.park_silent(handler);
        }
        self.give_back_silent();
        let timeout = [
            limit,
            self.until_next_parking(),
            self.until_next_timer(),
            self.until_next_return(),
            self.until_next_rousing(),
        ];
        let timeout = timeout.into_iter().flatten().min();
        if self.ready.is_empty() && !self.sources.are_ready() && self.inbox.lie_down() {
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
            if self.sources.note(key) {
                continue;
            }
            // A stale key is the echo of a descriptor that somebody else closed.
            if let Some(connection) = self.slots.find(key) {
                connection.note(readiness);
                enqueue(&mut self.ready, connection, key);
            }
        }
    }

    /// One step of one connection. A panic costs that connection.
    fn guarded(&mut self, handler: &mut H, slot: u32, step: impl FnOnce(&mut Self, &mut H, u32)) {
        self.mailbox().begin_step(self.slots.key_of(slot));
        let result = catch_unwind(AssertUnwindSafe(|| step(self, handler, slot)));
        self.mailbox().end_step();
        if let Err(panic) = result
            && let Some(connection) = self.slots.get(slot)
        {
            handler.panicked(Some(&connection.descriptor), panic_message(&*panic));
            self.end(handler, slot, Reason::Exception);
        }
    }

    fn step(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        connection.queued = false;
        self.look_for_end(handler, slot);
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        let blocked = connection.descriptor.is_blocked();
        match connection.state {
            State::Writing if !blocked => {
                self.write(handler, slot);
                self.look_for_reader(handler, slot);
            }
            State::Closing if !blocked => self.flush(handler, slot),
            State::Reading | State::Writing | State::Closing | State::Paused => {
                if connection.may_push() {
                    self.push_out(handler, slot);
                }
                match self.slots.get(slot) {
                    Some(connection) if connection.may_read() => self.read(handler, slot),
                    Some(_) => self.look_for_peer(handler, slot),
                    None => {}
                }
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
        let verdict = match descriptor.receive(&mut self.buffer[..size]) {
            Ok(Received::Data { length, drained }) => {
                connection.readable = !drained || connection.hung_up;
                connection.came_in(length, self.now);
                handler.readable(
                    &mut connection.user,
                    &connection.descriptor,
                    &self.buffer[..length],
                )
            }
            Ok(Received::Datagram { length }) => {
                connection.came_in(length, self.now);
                handler.readable(
                    &mut connection.user,
                    &connection.descriptor,
                    &self.buffer[..length],
                )
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
        self.answered(handler, slot, verdict);
    }

    fn write(&mut self, handler: &mut H, slot: u32) {
        if !self.finish_push(handler, slot) {
            return;
        }
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        let verdict = handler.writable(&mut connection.user, &connection.descriptor);
        connection.unwritten = verdict == Ok(Action::Continue);
        self.apply(handler, slot, verdict);
    }

    fn flush(&mut self, handler: &mut H, slot: u32) {
        if !self.finish_push(handler, slot) {
            return;
        }
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        match handler.flush(&mut connection.user, &connection.descriptor) {
            // What was pushed before the end goes out as well.
            Flushed::All if connection.owner().has_output() => {
                if self.push_out(handler, slot) {
                    self.enter(handler, slot, Input::Flushed);
                }
            }
            Flushed::All => self.enter(handler, slot, Input::Flushed),
            Flushed::Blocked => {}
            Flushed::Failed(reason) => self.end(handler, slot, reason),
        }
    }

    /// Does what a callback asked for that brought something of the peer, or of somebody else.
    fn answered(&mut self, handler: &mut H, slot: u32, verdict: Verdict) {
        if let Some(connection) = self.slots.get(slot) {
            connection.greeted |= verdict != Ok(Action::Continue) && handler.was_explicit();
        }
        self.apply(handler, slot, verdict);
    }

    /// Does what a callback asked for.
    fn apply(&mut self, handler: &mut H, slot: u32, verdict: Verdict) {
        self.apply_as(handler, slot, verdict, Reason::Closed);
    }

    /// The same, with the reason should that be the end.
    fn apply_as(&mut self, handler: &mut H, slot: u32, verdict: Verdict, closing: Reason) {
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
                    let action = match action {
                        // Only who writes can say that it has written all: whatever else is
                        // told meanwhile, and paused, it goes on.
                        Action::ReadPending if connection.unwritten => Action::WritePending,
                        other => other,
                    };
                    match action {
                        Action::WritePending => connection.unwritten = true,
                        Action::Abort => connection.reason = Reason::Aborted,
                        Action::Close if !connection.eof => connection.reason = closing,
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
        if connection.state == State::Paused && just_began {
            // It was we who had it wait, not the peer.
            connection.active_at = self.now;
        }
        connection.state = state;
        if state == State::Closing && just_began {
            connection.owner().is_ending();
        }
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
            let paused = connection.is_held();
            let unheard = paused && (descriptor.kind() == Kind::Tcp || descriptor.peer_is_gone());
            if connection.eof || unheard || connection.awaits_room() {
                self.end(handler, slot, Reason::PeerGone);
            }
        }
    }

    /// A protocol that asks for room to write and then writes nothing hears only here that
    /// nobody will read any more; it would be asked for ever.
    fn look_for_reader(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        if connection.dead && connection.state == State::Writing {
            self.end(handler, slot, Reason::PeerGone);
        }
    }

    /// The end of each step: what is wished for, who looks after the connection until its next
    /// step, and for how long.
    fn settle(&mut self, handler: &mut H, slot: u32) {
        // All that follows would find nothing to do: it is a seventh of what the engine costs.
        if let Some(connection) = self.slots.get(slot)
            && connection.just_waits()
        {
            connection.note_progress(self.now);
            if self.linger.is_some() {
                self.slots.fell_silent(slot, self.now);
            }
            return;
        }
        self.heed(handler, slot);
        self.place_watch(handler, slot);
        if let Some(connection) = self.slots.get(slot) {
            connection.note_progress(self.now);
            self.set_timer(slot);
        }
    }

    /// Decides who looks after a connection until its next step.
    fn place_watch(&mut self, handler: &mut H, slot: u32) {
        let key = self.slots.key_of(slot);
        let Some(connection) = self.slots.find(key) else {
            return;
        };
        if connection.state == State::Writing && connection.descriptor.is_blocked() {
            let backlog = handler.backlog(&mut connection.user);
            connection.weigh(backlog);
        }
        if connection.state == State::Reading {
            connection.flooded = false;
        }
        if connection.is_busy() {
            enqueue(&mut self.ready, connection, key);
        }
        let watched = match connection.watch {
            // Soon there is another step. One that writes may have many and nothing to say,
            // and has to be watched for the end of its peer.
            Watch::Nobody if connection.queued && connection.state != State::Writing => Ok(()),
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
                connection
                    .descriptor
                    .watch(&self.poller, key, write)
                    .map(|()| {
                        connection.watch = Watch::Poller { write };
                    })
            }
            // Registered for room to write once, it stays so: the kernel reports room
            // only to those it had refused.
            Watch::Poller { write: false } if connection.awaits_room() => connection
                .descriptor
                .watch_room(&self.poller, key)
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
        // Before the loss is told: who hears of it is told the same by whatever it tries.
        if let Some(owner) = descriptor.owner() {
            owner.is_lost();
        }
        if matches!(watch, Watch::Poller { .. }) && !descriptor.is_gone() && !descriptor.is_sole() {
            // Fails only where the descriptor is gone already, and with it the entry.
            let _ = descriptor.unwatch(&self.poller);
        }
        let lost = catch_unwind(AssertUnwindSafe(|| handler.lost(user, &descriptor, reason)));
        if let Err(panic) = lost {
            handler.panicked(Some(&descriptor), panic_message(&*panic));
        }
        // Of one that was parked until it could write nobody knows whether anything came meanwhile.
        if reason.is_ours() && (readable || seat.is_some()) && !eof {
            descriptor.finish(&mut self.buffer);
        }
        if let Some(owner) = descriptor.owner() {
            owner.count(|counters| counters.count_end(reason));
            owner.has_ended(reason);
        }
        if let Some(seat) = seat {
            self.demultiplexer.retire(seat);
        }
    }

    /// Closes everything.
    fn stop(&mut self, handler: &mut H) {
        for slot in self.slots.numbers() {
            self.guarded(handler, slot, Self::stop_one);
        }
        self.sources.clear();
        self.mailbox().end_turn();
    }

    /// Closes a connection, after one try to send what is buffered.
    fn stop_one(&mut self, handler: &mut H, slot: u32) {
        if !self.finish_push(handler, slot) {
            return self.end(handler, slot, Reason::Stopped);
        }
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        let Connection {
            user, descriptor, ..
        } = connection;
        let flushed = catch_unwind(AssertUnwindSafe(|| handler.flush(user, descriptor)));
        match flushed {
            Ok(Flushed::All) => {
                self.push_out(handler, slot);
            }
            Ok(Flushed::Blocked | Flushed::Failed(_)) => {}
            Err(panic) => handler.panicked(Some(descriptor), panic_message(&*panic)),
        }
        self.end(handler, slot, Reason::Stopped);
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
