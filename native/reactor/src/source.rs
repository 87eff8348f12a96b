//! Where an engine may get connections by itself: a listening socket that is lent to it.
//!
//! A listening socket is watched like a connection. While clients come it stays with a worker,
//! which accepts them in its own turns, so that nobody else has to wake for each; when none has
//! come for the linger it is given back to whoever lent it, to be watched there.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::descriptor::Descriptor;
use crate::inbox::Key;
use crate::service::Admission;

/// What a source has to offer.
pub enum Offer<O> {
    /// A connection, with its place and what its handler will want to know.
    Connection {
        /// Its descriptor.
        descriptor: Arc<Descriptor>,
        /// For [`Handler::connected`](crate::Handler::connected).
        opening: O,
        /// Its place.
        admission: Admission,
    },
    /// Nobody waits.
    Empty,
    /// Nobody can be taken in for now: it is asked again after so long, and not before.
    Later(Duration),
    /// It cannot go on here: it is to be given back.
    Over,
}

/// Offers connections. Dropping it gives it back.
pub trait Source<O>: Send {
    /// The next connection. Never waits.
    fn accept(&mut self) -> Offer<O>;

    /// What says by its readiness that there may be one.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// A source while it is lent.
pub(crate) struct Lent<O> {
    pub(crate) source: Box<dyn Source<O>>,
    pub(crate) key: Key,
    /// There may be somebody.
    pub(crate) ready: bool,
    /// The poller watches it.
    pub(crate) watched: bool,
    /// When the last client came.
    pub(crate) spoke_at: Instant,
    /// Until when it is left alone.
    pub(crate) rests_until: Option<Instant>,
}

/// No connection has this slot: there are fewer.
const SLOT: u32 = u32::MAX;

/// The sources that one engine has now.
pub(crate) struct Sources<O> {
    lent: Vec<Lent<O>>,
    last: u32,
}

impl<O> Sources<O> {
    pub(crate) const fn new() -> Self {
        Self {
            lent: Vec::new(),
            last: 0,
        }
    }

    pub(crate) fn take_in(&mut self, source: Box<dyn Source<O>>, now: Instant) {
        self.last = self.last.wrapping_add(1);
        self.lent.push(Lent {
            source,
            key: Key {
                slot: SLOT,
                generation: self.last,
            },
            ready: true,
            watched: false,
            spoke_at: now,
            rests_until: None,
        });
    }

    /// The poller reports something. False if `key` is no source's.
    pub(crate) fn note(&mut self, key: Key) -> bool {
        if key.slot != SLOT {
            return false;
        }
        for lent in &mut self.lent {
            lent.ready |= lent.key == key && lent.rests_until.is_none();
        }
        true
    }

    /// Has those asked again that have rested for long enough.
    pub(crate) fn rouse(&mut self, now: Instant) {
        for lent in &mut self.lent {
            if lent.rests_until.is_some_and(|until| until <= now) {
                lent.rests_until = None;
                lent.ready = true;
            }
        }
    }

    /// When the next of them has rested for long enough.
    pub(crate) fn next_rousing(&self) -> Option<Instant> {
        self.lent.iter().filter_map(|lent| lent.rests_until).min()
    }

    pub(crate) fn are_ready(&self) -> bool {
        self.lent.iter().any(|lent| lent.ready)
    }

    pub(crate) const fn len(&self) -> usize {
        self.lent.len()
    }

    pub(crate) fn get(&mut self, position: usize) -> &mut Lent<O> {
        &mut self.lent[position]
    }

    pub(crate) fn give_back(&mut self, position: usize) -> Lent<O> {
        self.lent.swap_remove(position)
    }

    /// The one that has been silent for the longest, and since when.
    pub(crate) fn most_silent(&self) -> Option<(usize, Instant)> {
        let silent = |(position, lent): (usize, &Lent<O>)| (position, lent.spoke_at);
        self.lent
            .iter()
            .enumerate()
            .map(silent)
            .min_by_key(|(_, since)| *since)
    }

    /// The poller watches a descriptor no more. It has one entry for each, also where a socket
    /// that was taken back is lent anew before the engine knows: who else has it asks again.
    pub(crate) fn is_unwatched(&mut self, descriptor: &impl AsFd) {
        let number = descriptor.as_fd().as_raw_fd();
        for lent in &mut self.lent {
            if lent.source.descriptor().as_raw_fd() == number {
                lent.watched = false;
                lent.ready = true;
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.lent.clear();
    }
}
