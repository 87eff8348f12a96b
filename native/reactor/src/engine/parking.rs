//! Giving silent connections to the demultiplexer.

use std::time::Duration;

use super::Engine;
use crate::connection::Watch;
use crate::demultiplexer::{Demultiplexer, Interest};
use crate::handler::Handler;
use crate::reason::Reason;

/// Connections parked between two looks at the kernel.
const PARKINGS_PER_REST: usize = 32;

impl<H: Handler, D: Demultiplexer> Engine<H, D> {
    /// How long until somebody has been silent for the linger; zero if somebody has.
    pub(super) fn until_next_parking(&mut self) -> Option<Duration> {
        let linger = self.linger?;
        let slot = self.slots.most_silent()?;
        let connection = self.slots.get(slot)?;
        let parking = connection.spoke_at.checked_add(linger)?;
        Some(parking.saturating_duration_since(self.now))
    }

    pub(super) fn park_silent(&mut self, handler: &mut H) {
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
    pub(super) fn park(&mut self, handler: &mut H, slot: u32) {
        self.slots.forget_silence(slot);
        let key = self.slots.key_of(slot);
        let Some(connection) = self.slots.find(key) else {
            return;
        };
        if matches!(connection.watch, Watch::Poller { .. })
            && connection.descriptor.unwatch(&self.poller).is_err()
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
            mailbox.counters().parkings.raise(1);
        } else {
            connection.unparkable = true;
            connection.watch = Watch::Nobody;
            self.settle(handler, slot);
        }
    }
}
