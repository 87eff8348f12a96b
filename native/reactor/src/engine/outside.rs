//! What reaches a connection from outside: signals, messages, wishes, pushed bytes, and the
//! stage of its service.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Engine, MAX_READ_BYTES, enqueue, panic_message};
use crate::action::Action;
use crate::connection::Watch;
use crate::demultiplexer::Demultiplexer;
use crate::handler::Handler;
use crate::inbox::{Key, Payload, Signal};
use crate::poller::Readiness;
use crate::reason::Reason;
use crate::service::Stage;
use crate::state::State;

/// Messages that are handed over between two looks at the kernel.
const MESSAGES_PER_TURN: usize = 256;
/// Times that a connection may fill the kernel's buffer with pushed messages in one step.
const PUSHES_PER_STEP: usize = 4;

impl<H: Handler, D: Demultiplexer> Engine<H, D> {
    pub(super) fn take_signals(&mut self, handler: &mut H) {
        // No more than there are now: whoever sends without end, even from a callback of
        // this very loop, waits for the next turn.
        for _ in 0..self.inbox.signals.len() {
            let Ok(signal) = self.inbox.signals.try_recv() else {
                break;
            };
            match signal {
                Signal::Ready(key, readiness) => {
                    self.mailbox().counters().wakes.raise(1);
                    self.unpark(key, readiness);
                }
                Signal::Resume(key, action) => {
                    if self.slots.find(key).is_some() {
                        self.unpark(key, Readiness::default());
                        self.guarded(handler, key.slot, |engine, handler, slot| {
                            engine.look_for_end(handler, slot);
                            if let Some(connection) = engine.slots.get(slot) {
                                let action = handler.resumed(&mut connection.user, action);
                                engine.apply(handler, slot, Ok(action));
                            }
                            engine.settle(handler, slot);
                        });
                    }
                }
                Signal::Look(key) => self.unpark(key, Readiness::default()),
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
    pub(super) fn unpark(&mut self, key: Key, readiness: Readiness) {
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

    /// Hands messages over.
    pub(super) fn take_messages(&mut self, handler: &mut H) {
        for _ in 0..self.inbox.messages.len().min(MESSAGES_PER_TURN) {
            let Ok((to, message)) = self.inbox.messages.try_recv() else {
                return;
            };
            match to {
                Some(key) => self.deliver(handler, key, message),
                None => {
                    let done = catch_unwind(AssertUnwindSafe(|| handler.errand(message)));
                    if let Err(panic) = done {
                        handler.panicked(None, panic_message(&*panic));
                    }
                }
            }
        }
    }

    /// A connection that is over, or closes, gets no message any more.
    fn deliver(&mut self, handler: &mut H, key: Key, message: Payload) {
        if self.slots.find(key).is_none() {
            return;
        }
        self.unpark(key, Readiness::default());
        self.guarded(handler, key.slot, |engine, handler, slot| {
            engine.look_for_end(handler, slot);
            let Some(connection) = engine.slots.get(slot) else {
                return;
            };
            if connection.state == State::Closing {
                return;
            }
            let verdict = handler.message(&mut connection.user, &connection.descriptor, message);
            engine.answered(handler, slot, verdict);
            engine.settle(handler, slot);
        });
    }

    /// Tells a connection how far its service is, unless it knows.
    pub(super) fn review(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        let stage = connection.owner().service().stage();
        if connection.told >= stage {
            return;
        }
        connection.told = stage;
        let key = self.slots.key_of(slot);
        match stage {
            Stage::Serving => {}
            Stage::Draining => {
                self.unpark(key, Readiness::default());
                self.guarded(handler, slot, |engine, handler, slot| {
                    engine.look_for_end(handler, slot);
                    engine.drain(handler, slot);
                    engine.settle(handler, slot);
                });
            }
            Stage::Ending => self.guarded(handler, slot, Self::stop_one),
        }
    }

    fn drain(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        if connection.state != State::Closing {
            let verdict = handler.draining(&mut connection.user, &connection.descriptor);
            self.apply_as(handler, slot, verdict, Reason::Drained);
        }
    }

    /// Before a callback: whoever was served before in this very turn, or another thread, may have
    /// ended the connection.
    pub(super) fn look_for_end(&mut self, handler: &mut H, slot: u32) {
        if let Some(connection) = self.slots.get(slot)
            && connection.owner().is_asked()
        {
            self.heed(handler, slot);
        }
    }

    /// Takes note of what the connection was asked for besides actions.
    pub(super) fn heed(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        if let Some(granted) = connection.owner().grant() {
            if let Some(timeout) = granted.timeout {
                // Not from the beginning of the turn: a callback may have taken long.
                connection.timeout_at =
                    timeout.and_then(|timeout| self.clock.now().checked_add(timeout));
            }
            connection.reading_held = granted.hold_reading;
            connection.closes_when_idle = granted.close_when_idle;
            if connection.owner().is_overrun() {
                return self.end(handler, slot, Reason::SlowConsumer);
            }
            if granted.abort {
                return self.apply(handler, slot, Ok(Action::Abort));
            }
            if granted.close {
                self.apply(handler, slot, Ok(Action::Close));
            }
        }
        self.close_if_idle(handler, slot);
    }

    /// Closes a connection that wants to be closed when it is idle. What is in the kernel may
    /// not have been announced yet, so that is looked at first.
    fn close_if_idle(&mut self, handler: &mut H, slot: u32) {
        let Some(connection) = self.slots.get(slot) else {
            return;
        };
        if !connection.closes_when_idle || !connection.is_idle() {
            return;
        }
        if connection.looked_idle || connection.eof {
            self.apply_as(handler, slot, Ok(Action::Close), Reason::Drained);
        } else {
            connection.looked_idle = true;
            connection.readable = true;
        }
    }

    /// Whether the protocol may write: no pushed message is sent in part any more.
    pub(super) fn finish_push(&mut self, handler: &mut H, slot: u32) -> bool {
        match self.slots.get(slot) {
            Some(connection) if connection.owner().is_mid_message() => self.push_out(handler, slot),
            _ => true,
        }
    }

    /// Sends what was pushed; true if none is left.
    pub(super) fn push_out(&mut self, handler: &mut H, slot: u32) -> bool {
        for _ in 0..PUSHES_PER_STEP {
            let Some(connection) = self.slots.get(slot) else {
                return false;
            };
            let (descriptor, owner) = (&connection.descriptor, connection.owner());
            let one_by_one = descriptor.kind().is_datagram();
            let buffer = &mut self.buffer[..MAX_READ_BYTES];
            let filled = owner.with_outbox(|outbox| {
                if one_by_one {
                    outbox.fill_one(buffer)
                } else {
                    outbox.fill(buffer)
                }
            });
            if filled == 0 {
                return true;
            }
            let sent = match descriptor.send_now(&buffer[..filled]) {
                Ok(sent) => sent,
                // It was the fate of one datagram.
                Err(_) if one_by_one && descriptor.fault().is_none() => filled,
                Err(errno) => {
                    self.end(handler, slot, Reason::Failed(errno));
                    return false;
                }
            };
            owner.with_outbox(|outbox| {
                outbox.sent(sent);
                if sent < filled {
                    outbox.block();
                }
            });
            if owner.is_overrun() {
                self.end(handler, slot, Reason::SlowConsumer);
                return false;
            }
            if sent < filled {
                return false;
            }
        }
        false
    }
}
