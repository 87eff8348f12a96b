//! One connection as the engine sees it, and the slots that hold all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::descriptor::Descriptor;
use crate::inbox::{Key, Place};
use crate::kind::Kind;
use crate::link::Owner;
use crate::poller::Readiness;
use crate::reason::Reason;
use crate::service::Stage;
use crate::state::State;

/// Who tells us when the descriptor is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Nobody yet: it was just adopted or just came back.
    Nobody,
    /// The worker's own poller; `write` if for room to write as well.
    Poller { write: bool },
    /// The demultiplexer.
    Parked,
}

/// What happens when the time of a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// The protocol is told: it asked for it.
    Protocol,
    /// It closes when it is idle, and its first byte is not awaited any longer.
    FirstByte,
    /// The connection ends.
    End(Reason),
}

/// A connection that is to close when it is idle waits so long for its first byte: whoever has just
/// connected is about to send. (As long as TCP waits before it repeats a lost one, RFC 6298, 2.4.)
const FIRST_BYTE: Duration = Duration::from_secs(1);

pub(crate) struct Connection<C, S> {
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) user: C,
    pub(crate) state: State,
    /// It began to write and has not said that all is written, though it may be paused.
    pub(crate) unwritten: bool,
    /// Why it will have ended, should it end now.
    pub(crate) reason: Reason,
    /// The kernel may have something to read.
    pub(crate) readable: bool,
    /// The peer hung up or sent something urgent: read on until the kernel says that
    /// nothing is left, however short the reads.
    pub(crate) hung_up: bool,
    /// The peer is gone for both directions.
    pub(crate) dead: bool,
    /// The end of the stream was read.
    pub(crate) eof: bool,
    /// It stands in the queue of those with something to do.
    pub(crate) queued: bool,
    pub(crate) watch: Watch,
    pub(crate) seat: Option<S>,
    /// The demultiplexer refused it once; it stays with the worker.
    pub(crate) unparkable: bool,
    pub(crate) spoke_at: Instant,
    /// Its neighbours in the order of silence, if it may be parked.
    pub(crate) silence: Option<Neighbours>,
    /// When it came.
    pub(crate) born: Instant,
    /// A callback that brought something has answered with more than "continue".
    pub(crate) greeted: bool,
    /// Something has come, or has had its time to come.
    pub(crate) had_its_say: bool,
    /// When the last byte came or went.
    pub(crate) active_at: Instant,
    /// Bytes that had gone out by then.
    pub(crate) sent: u64,
    /// Since when the kernel takes nothing of what is to be sent.
    pub(crate) stalled_since: Option<Instant>,
    /// When the protocol wants to be told that time is over.
    pub(crate) timeout_at: Option<Instant>,
    /// Its entry among the timers.
    pub(crate) timer_at: Option<Instant>,
    /// The protocol wants nothing read for now.
    pub(crate) reading_held: bool,
    /// So much waited to be written that nothing is read until there is little.
    pub(crate) flooded: bool,
    /// It is read while it waits for room to write.
    pub(crate) reads_on: bool,
    /// It closes when it has nothing to do.
    pub(crate) closes_when_idle: bool,
    /// A look at the kernel showed that there is nothing to read.
    pub(crate) looked_idle: bool,
    /// What it has been told of its service.
    pub(crate) told: Stage,
    _place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neighbours {
    older: Option<u32>,
    younger: Option<u32>,
}

impl<C, S> Connection<C, S> {
    pub(crate) const fn new(
        descriptor: Arc<Descriptor>,
        user: C,
        place: Place,
        now: Instant,
    ) -> Self {
        Self {
            descriptor,
            user,
            state: State::Reading,
            unwritten: false,
            reason: Reason::Closed,
            readable: false,
            hung_up: false,
            dead: false,
            eof: false,
            queued: false,
            watch: Watch::Nobody,
            seat: None,
            unparkable: false,
            spoke_at: now,
            silence: None,
            born: now,
            greeted: false,
            had_its_say: false,
            active_at: now,
            sent: 0,
            stalled_since: None,
            timeout_at: None,
            timer_at: None,
            reading_held: false,
            flooded: false,
            reads_on: false,
            closes_when_idle: false,
            looked_idle: false,
            told: Stage::Serving,
            _place: place,
        }
    }

    /// Takes note of what the kernel says.
    pub(crate) fn note(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable;
        self.hung_up |= readiness.hung_up;
        // What is reported of a datagram socket is the fate of one datagram.
        self.dead |= readiness.dead && !self.descriptor.kind().is_datagram();
        if readiness.writable {
            self.descriptor.unblock();
        }
    }

    /// Takes note of data that was read.
    pub(crate) fn came_in(&mut self, bytes: usize, now: Instant) {
        self.active_at = now;
        self.had_its_say = true;
        self.looked_idle = false;
        self.owner().count(|counters| {
            counters.reads.raise(1);
            counters.bytes_in.raise(bytes as u64);
        });
    }

    pub(crate) fn owner(&self) -> &Owner {
        self.descriptor
            .owner()
            .expect("it was set when the engine took the descriptor")
    }

    /// Whether there is something to do without waiting for the kernel.
    pub(crate) fn is_busy(&self) -> bool {
        let writes = matches!(self.state, State::Writing | State::Closing);
        (writes && !self.descriptor.is_blocked()) || self.may_read() || self.may_push()
    }

    /// Whether a read may bring something that may be read.
    pub(crate) fn may_read(&self) -> bool {
        let wanted = match self.state {
            State::Reading => true,
            State::Writing => self.reads_on && self.descriptor.is_blocked(),
            State::Paused | State::Closing | State::Closed => false,
        };
        wanted && self.readable && !self.eof && !self.reading_held
    }

    /// Whether a pushed message can be sent, or its rest.
    pub(crate) fn may_push(&self) -> bool {
        !self.descriptor.is_blocked() && self.has_to_push()
    }

    /// Pushed messages wait until the protocol has written what it began, but one that is sent
    /// in part goes before all else.
    fn has_to_push(&self) -> bool {
        match self.state {
            State::Reading => self.owner().has_output(),
            State::Writing | State::Paused | State::Closing => self.owner().is_mid_message(),
            State::Closed => false,
        }
    }

    /// Whether it waits for room to write.
    pub(crate) fn awaits_room(&self) -> bool {
        let writes = matches!(self.state, State::Writing | State::Closing);
        self.descriptor.is_blocked() && (writes || self.has_to_push())
    }

    /// Whether it does nothing and nothing is known that it could do.
    pub(crate) fn is_idle(&self) -> bool {
        self.first_byte_due().is_none()
            && self.state == State::Reading
            && !self.reading_held
            && !self.may_read()
            && !self.owner().has_output()
    }

    /// Until when the first byte may come, of a connection that is to close when it is idle.
    fn first_byte_due(&self) -> Option<Instant> {
        let awaited = self.closes_when_idle && !self.had_its_say && !self.eof;
        self.born.checked_add(FIRST_BYTE).filter(|_| awaited)
    }

    /// Whether all that is left to do is to wait for data, as after nearly every step: the poller
    /// watches it, and nothing is wished for, limited, or about to be sent.
    pub(crate) fn just_waits(&self) -> bool {
        let owner = self.owner();
        self.state == State::Reading
            && matches!(self.watch, Watch::Poller { .. })
            && !owner.is_asked()
            && !owner.has_output()
            && !(self.readable || self.eof || self.queued || self.reading_held || self.flooded)
            && !self.unparkable
            && !self.closes_when_idle
            && self.stalled_since.is_none()
            && self.timeout_at.is_none()
            // One that is entered stays as it is: a byte only puts the deadline off.
            && (self.timer_at.is_some() || self.deadline().is_none())
    }

    /// Whether neither the engine reads nor the protocol writes, because somebody wants it so.
    pub(crate) fn is_held(&self) -> bool {
        self.state == State::Paused || (self.state == State::Reading && self.reading_held)
    }

    /// Whether the demultiplexer could watch it: it waits for one thing, which a
    /// level-triggered report will not announce before it is there. A full terminal whose
    /// other side is closed would be announced for ever.
    pub(crate) fn may_park(&self) -> bool {
        let waits = match self.state {
            State::Reading => !self.eof && !self.reading_held && !self.owner().has_output(),
            State::Writing | State::Closing => {
                !self.reads_on && self.descriptor.kind() != Kind::Tty
            }
            State::Paused | State::Closed => false,
        };
        waits && !self.unparkable && !self.queued
    }

    /// Decides whether it is read while the kernel takes nothing of its `backlog`: with some
    /// distance between stop and go, so that it does not change with every byte.
    pub(crate) fn weigh(&mut self, backlog: Option<usize>) {
        let limits = self.owner().service().limits();
        let (high, low) = (limits.high_water, limits.low_water);
        self.flooded = match backlog {
            None => true,
            Some(bytes) if self.flooded => bytes >= low,
            Some(bytes) => bytes > high,
        };
        self.reads_on = !self.flooded;
    }

    /// Takes note of what went out, and of whether the kernel takes more.
    pub(crate) fn note_progress(&mut self, now: Instant) {
        let sent = self.owner().sent();
        if sent != self.sent {
            self.sent = sent;
            self.active_at = now;
            self.stalled_since = None;
        }
        if !self.awaits_room() {
            self.stalled_since = None;
        } else if self.stalled_since.is_none() {
            self.stalled_since = Some(now);
        }
    }

    /// When its time has come, and what happens then.
    pub(crate) fn deadline(&self) -> Option<(Instant, Expiry)> {
        let limits = self.owner().service().limits();
        // As a rule nothing is set, and this is asked after every step.
        if self.timeout_at.is_none()
            && self.stalled_since.is_none()
            && limits.idle_timeout.is_none()
            && (self.greeted || limits.handshake_timeout.is_none())
            && !self.closes_when_idle
        {
            return None;
        }
        let after = |since: Instant, limit: Option<Duration>| since.checked_add(limit?);
        let opens = self.state != State::Closing;
        let deadlines = [
            (self.timeout_at.filter(|_| opens), Expiry::Protocol),
            (
                after(self.born, limits.handshake_timeout).filter(|_| opens && !self.greeted),
                Expiry::End(Reason::HandshakeTimeout),
            ),
            (self.first_byte_due(), Expiry::FirstByte),
            (
                after(self.active_at, limits.idle_timeout).filter(|_| self.state != State::Paused),
                Expiry::End(Reason::IdleTimeout),
            ),
            (
                self.stalled_since
                    .and_then(|since| after(since, limits.write_timeout)),
                Expiry::End(Reason::WriteTimeout),
            ),
        ];
        deadlines
            .into_iter()
            .filter_map(|(at, expiry)| Some((at?, expiry)))
            .min_by_key(|(at, _)| *at)
    }
}

struct Slot<T> {
    generation: u32,
    content: Option<T>,
}

/// All connections of one engine, and the order in which they fell silent.
pub(crate) struct Slots<C, S> {
    slots: Vec<Slot<Connection<C, S>>>,
    free: Vec<u32>,
    oldest: Option<u32>,
    youngest: Option<u32>,
}

impl<C, S> Slots<C, S> {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            oldest: None,
            youngest: None,
        }
    }

    /// The key that the next [`fill`](Self::fill) will use.
    pub(crate) fn next_key(&mut self) -> Key {
        let slot = match self.free.last() {
            Some(slot) => *slot,
            None => {
                let slot = u32::try_from(self.slots.len()).expect("fewer connections than 2^32");
                self.slots.push(Slot {
                    generation: 0,
                    content: None,
                });
                self.free.push(slot);
                slot
            }
        };
        Key {
            slot,
            generation: self.slots[slot as usize].generation,
        }
    }

    pub(crate) fn fill(&mut self, key: Key, connection: Connection<C, S>) {
        self.free.pop_if(|slot| *slot == key.slot);
        self.slots[key.slot as usize].content = Some(connection);
    }

    /// Makes `key` stale without ever having filled its slot.
    pub(crate) fn skip(&mut self, key: Key) {
        let generation = &mut self.slots[key.slot as usize].generation;
        *generation = generation.wrapping_add(1);
    }

    pub(crate) fn key_of(&self, slot: u32) -> Key {
        Key {
            slot,
            generation: self.slots[slot as usize].generation,
        }
    }

    /// The connection of `key`, if it is still the same one.
    pub(crate) fn find(&mut self, key: Key) -> Option<&mut Connection<C, S>> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        slot.content.as_mut()
    }

    pub(crate) fn get(&mut self, slot: u32) -> Option<&mut Connection<C, S>> {
        self.slots.get_mut(slot as usize)?.content.as_mut()
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<Connection<C, S>> {
        self.forget_silence(slot);
        let place = self.slots.get_mut(slot as usize)?;
        let content = place.content.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot);
        Some(content)
    }

    /// How many are used.
    pub(crate) const fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The numbers of all slots, used or not.
    pub(crate) fn numbers(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.slots.len()).expect("fewer connections than 2^32")
    }

    /// The connection that has been silent for the longest.
    pub(crate) const fn most_silent(&self) -> Option<u32> {
        self.oldest
    }

    /// Puts a connection behind all others in the order of silence.
    pub(crate) fn fell_silent(&mut self, slot: u32, now: Instant) {
        if self.youngest == Some(slot) {
            if let Some(connection) = self.get(slot) {
                connection.spoke_at = now;
            }
            return;
        }
        self.forget_silence(slot);
        let older = self.youngest;
        if let Some(connection) = self.get(slot) {
            connection.spoke_at = now;
            connection.silence = Some(Neighbours {
                older,
                younger: None,
            });
        }
        match older {
            Some(older) => self.neighbours(older).younger = Some(slot),
            None => self.oldest = Some(slot),
        }
        self.youngest = Some(slot);
    }

    /// Takes a connection out of the order of silence.
    pub(crate) fn forget_silence(&mut self, slot: u32) {
        let Some(Neighbours { older, younger }) = self
            .get(slot)
            .and_then(|connection| connection.silence.take())
        else {
            return;
        };
        match older {
            Some(older) => self.neighbours(older).younger = younger,
            None => self.oldest = younger,
        }
        match younger {
            Some(younger) => self.neighbours(younger).older = older,
            None => self.youngest = older,
        }
    }

    fn neighbours(&mut self, slot: u32) -> &mut Neighbours {
        self.get(slot)
            .and_then(|connection| connection.silence.as_mut())
            .expect("a neighbour stands in the list itself")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Arc, Connection, Descriptor, Instant, Key, Kind, Place, Slots};
    use crate::inbox::Inbox;
    use crate::poller::Poller;
    use crate::wire::Wire;

    const ROOM: u32 = 8;

    /// What may happen to the slot of this number, taken modulo [`ROOM`].
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Fill,
        Skip,
        Remove(u32),
        FallSilent(u32),
        Forget(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let slot = 0..ROOM;
        prop_oneof![
            3 => Just(Step::Fill),
            1 => Just(Step::Skip),
            2 => slot.clone().prop_map(Step::Remove),
            4 => slot.clone().prop_map(Step::FallSilent),
            2 => slot.prop_map(Step::Forget),
        ]
    }

    /// The slots beside the two lists that they stand for.
    struct Twin {
        slots: Slots<u32, ()>,
        /// Those that are used, with their keys and users.
        used: Vec<(Key, u32)>,
        /// The silent ones, the most silent first.
        silent: Vec<u32>,
        given_out: HashSet<Key>,
        start: Instant,
    }

    impl Twin {
        fn play(&mut self, number: u32, step: Step, place: Place) {
            match step {
                Step::Fill if self.used.len() < ROOM as usize => {
                    let key = self.new_key();
                    let wire = Arc::new(Wire::new(false));
                    let descriptor = Descriptor::simulated(wire, Kind::Tcp, None);
                    let connection = Connection::new(descriptor, number, place, self.start);
                    self.slots.fill(key, connection);
                    self.used.push((key, number));
                }
                Step::Skip if self.used.len() < ROOM as usize => {
                    let key = self.new_key();
                    self.slots.skip(key);
                }
                Step::Remove(slot) => {
                    let removed = self.slots.remove(slot).map(|connection| connection.user);
                    let known = self.used.iter().position(|(key, _)| key.slot == slot);
                    assert_eq!(removed, known.map(|at| self.used.swap_remove(at).1));
                    self.silent.retain(|silent| *silent != slot);
                }
                Step::FallSilent(slot) if self.is_used(slot) => {
                    let now = self.start + Duration::from_millis(number.into());
                    self.slots.fell_silent(slot, now);
                    self.silent.retain(|silent| *silent != slot);
                    self.silent.push(slot);
                }
                Step::Forget(slot) => {
                    self.slots.forget_silence(slot);
                    self.silent.retain(|silent| *silent != slot);
                }
                Step::Fill | Step::Skip | Step::FallSilent(_) => {}
            }
        }

        fn new_key(&mut self) -> Key {
            let key = self.slots.next_key();
            assert!(self.given_out.insert(key), "a key was given out twice");
            assert!(!self.is_used(key.slot));
            key
        }

        fn is_used(&self, slot: u32) -> bool {
            self.used.iter().any(|(key, _)| key.slot == slot)
        }

        fn compare(&mut self) {
            assert_eq!(self.slots.used(), self.used.len());
            for key in &self.given_out {
                let user = self.slots.find(*key).map(|connection| connection.user);
                let known = self.used.iter().find(|(used, _)| used == key);
                assert_eq!(user, known.map(|(_, user)| *user));
            }
            assert_eq!(self.slots.most_silent(), self.silent.first().copied());
        }
    }

    proptest! {
        #[test]
        fn slots_are_what_they_stand_for(steps in prop::collection::vec(step(), 0..100)) {
            let (_poller, waker) = Poller::new().expect("a poller");
            let (_door, inbox) = Inbox::<()>::new(waker, 2 * ROOM as usize, Arc::default()).expect("an inbox");
            let mut twin = Twin {
                slots: Slots::new(),
                used: Vec::new(),
                silent: Vec::new(),
                given_out: HashSet::new(),
                start: Instant::now(),
            };
            for (number, step) in (0..).zip(steps) {
                let place = Place::take(&inbox.mailbox).expect("room");
                twin.play(number, step, place);
                twin.compare();
            }
            // The whole order, from its old end.
            let order: Vec<u32> = std::iter::from_fn(|| {
                let slot = twin.slots.most_silent()?;
                twin.slots.forget_silence(slot);
                Some(slot)
            })
            .collect();
            prop_assert_eq!(order, twin.silent);
            drop(twin.slots);
            prop_assert_eq!(inbox.mailbox.counters().active.get(), 0, "a place is not given back");
        }
    }
}
