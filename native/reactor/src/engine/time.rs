//! What happens because time has passed.

use std::time::Duration;

use super::{Engine, STEPS_PER_TURN};
use crate::connection::Expiry;
use crate::demultiplexer::Demultiplexer;
use crate::handler::Handler;
use crate::poller::Readiness;
use crate::reason::Reason;

impl<H: Handler, D: Demultiplexer> Engine<H, D> {
    /// Looks after those whose time has come.
    pub(super) fn expire(&mut self, handler: &mut H) {
        for _ in 0..STEPS_PER_TURN {
            let Some((at, key)) = self.timers.take_due(self.now) else {
                break;
            };
            let Some(connection) = self.slots.find(key) else {
                continue;
            };
            if connection.timer_at != Some(at) {
                continue;
            }
            connection.timer_at = None;
            match connection.deadline() {
                Some((due, Expiry::End(reason))) if due <= self.now => {
                    self.guarded(handler, key.slot, |engine, handler, slot| {
                        engine.end(handler, slot, reason);
                    });
                }
                Some((due, Expiry::Protocol)) if due <= self.now => {
                    self.unpark(key, Readiness::default());
                    self.guarded(handler, key.slot, |engine, handler, slot| {
                        engine.time_out(handler, slot);
                        engine.settle(handler, slot);
                    });
                }
                Some((due, Expiry::FirstByte)) if due <= self.now => {
                    connection.had_its_say = true;
                    self.unpark(key, Readiness::default());
                    self.guarded(handler, key.slot, Self::settle);
                }
                Some(_) | None => self.set_timer(key.slot),
            }
        }
        let slots = &mut self.slots;
        let used = slots.used();
        self.timers.tidy(used, |at, key| {
            slots
                .find(key)
                .is_some_and(|connection| connection.timer_at == Some(at))
        });
    }

    fn time_out(&mut self, handler: &mut H, slot: u32) {
        self.look_for_end(handler, slot);
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        // Another time may have been set, or the connection closes.
        if !matches!(connection.deadline(), Some((due, Expiry::Protocol)) if due <= self.now) {
            return;
        }
        connection.timeout_at = None;
        connection
            .owner()
            .count(|counters| counters.timeouts.raise(1));
        let verdict = handler.timeout(&mut connection.user, &connection.descriptor);
        self.apply_as(handler, slot, verdict, Reason::Timeout);
    }

    /// Enters a connection among the timers, unless it is there early enough.
    pub(super) fn set_timer(&mut self, slot: u32) {
        let key = self.slots.key_of(slot);
        let Some(connection) = self.slots.find(key) else {
            return;
        };
        if let Some((at, _)) = connection.deadline()
            && connection.timer_at.is_none_or(|entered| at < entered)
        {
            connection.timer_at = Some(at);
            self.timers.enter(at, key);
        }
    }

    pub(crate) fn until_next_timer(&self) -> Option<Duration> {
        Some(self.timers.next()?.saturating_duration_since(self.now))
    }
}
