//! How connections come: through the door, or from a source that is lent.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::{Engine, panic_message};
use crate::connection::Connection;
use crate::demultiplexer::Demultiplexer;
use crate::handler::Handler;
use crate::inbox::{Arrival, Newcomer, Place};
use crate::link::Owner;
use crate::reason::Reason;
use crate::source::Offer;

/// Descriptors that come in between two looks at those that are there.
const ARRIVALS_PER_TURN: usize = 64;

impl<H: Handler, D: Demultiplexer> Engine<H, D> {
    pub(super) fn take_arrivals(&mut self, handler: &mut H) {
        for _ in 0..ARRIVALS_PER_TURN {
            match self.inbox.arrivals.try_recv() {
                Ok(Arrival::Newcomer(newcomer)) => self.adopt(handler, newcomer),
                Ok(Arrival::Source(source)) => self.sources.take_in(source, self.now),
                Err(_) => return,
            }
        }
    }

    /// Accepts from the sources that may have somebody.
    pub(super) fn accept(&mut self, handler: &mut H) {
        self.sources.rouse(self.now);
        // From the last on, as one that is given back is replaced by the last.
        for position in (0..self.sources.len()).rev() {
            for _ in 0..ARRIVALS_PER_TURN {
                if !self.sources.get(position).ready {
                    break;
                }
                if !self.accept_from(handler, position) {
                    self.give_back(position);
                    break;
                }
            }
        }
    }

    /// Takes in one connection, if there is one; false if the source has to be given back.
    fn accept_from(&mut self, handler: &mut H, position: usize) -> bool {
        let place = self
            .mailbox()
            .has_room()
            .then(|| Place::take(self.mailbox()));
        let Some(place) = place.flatten() else {
            return false;
        };
        let lent = self.sources.get(position);
        match lent.source.accept() {
            Offer::Connection {
                descriptor,
                opening,
                admission,
            } => {
                lent.spoke_at = self.now;
                let newcomer = Newcomer {
                    descriptor,
                    opening,
                    place,
                    admission,
                };
                self.adopt(handler, newcomer);
                true
            }
            // What cannot be watched here may be watched elsewhere.
            Offer::Empty => self.await_clients(position),
            Offer::Later(rest) => {
                lent.ready = false;
                lent.rests_until = self.now.checked_add(rest);
                true
            }
            Offer::Over => false,
        }
    }

    /// Has the poller say when there is somebody again; false if it cannot.
    fn await_clients(&mut self, position: usize) -> bool {
        let lent = self.sources.get(position);
        lent.ready = false;
        if !lent.watched {
            let descriptor = lent.source.descriptor();
            lent.watched = self.poller.add(&descriptor, lent.key, false).is_ok();
        }
        lent.watched
    }

    fn give_back(&mut self, position: usize) {
        let lent = self.sources.give_back(position);
        if lent.watched {
            // Fails only where the descriptor is gone, and with it the entry.
            let _ = self.poller.remove(&lent.source.descriptor());
            self.sources.is_unwatched(&lent.source.descriptor());
        }
    }

    /// Gives sources back that have been silent for the linger.
    pub(super) fn give_back_silent(&mut self) {
        while self.until_next_return() == Some(Duration::ZERO) {
            if let Some((position, _)) = self.sources.most_silent() {
                self.give_back(position);
            }
        }
    }

    pub(super) fn until_next_rousing(&self) -> Option<Duration> {
        let at = self.sources.next_rousing()?;
        Some(at.saturating_duration_since(self.now))
    }

    pub(super) fn until_next_return(&self) -> Option<Duration> {
        let (_, since) = self.sources.most_silent()?;
        let back = since.checked_add(self.linger?)?;
        Some(back.saturating_duration_since(self.now))
    }

    pub(super) fn adopt(&mut self, handler: &mut H, newcomer: Newcomer<H::Opening>) {
        let Newcomer {
            descriptor,
            opening,
            place,
            admission,
        } = newcomer;
        let key = self.slots.next_key();
        let mailbox = Arc::clone(self.mailbox());
        let shard = self.shards.of(admission.service());
        let owner = Owner::new(key, Arc::clone(&mailbox), admission, shard);
        descriptor.owned_by(owner);
        if let Some(owner) = descriptor.owner() {
            owner.count(|counters| counters.accepted.raise(1));
        }
        mailbox.begin_step(key);
        let opened = catch_unwind(AssertUnwindSafe(|| handler.connected(&descriptor, opening)));
        mailbox.end_step();
        let opened = opened.unwrap_or_else(|panic| {
            handler.panicked(Some(&descriptor), panic_message(&*panic));
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
                self.review(handler, slot);
            }
            None => {
                self.slots.skip(key);
                if let Some(owner) = descriptor.owner() {
                    owner.count(|counters| counters.count_end(Reason::Exception));
                    owner.has_ended(Reason::Exception);
                }
            }
        }
    }
}
