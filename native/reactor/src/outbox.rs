//! Messages that were pushed to a connection and wait for the kernel to take them.
//!
//! Any thread pushes, the worker sends. Each message goes out whole, in one piece with no
//! byte of the protocol between; so a message of which a part is sent is never dropped.

use std::collections::VecDeque;

use crate::service::SlowConsumer;

/// Messages that may wait: each takes some 50 bytes beside its own, which may be fewer.
const MAX_MESSAGES: usize = 1024;

/// Room that stays when nothing waits.
const SPARE_MESSAGES: usize = 16;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It waits, in the place of this many older ones.
    Kept {
        /// Messages that were dropped for it.
        dropped: u64,
    },
    /// It was dropped.
    Dropped,
    /// It was not taken: as much waits as may, though not for the peer.
    Full,
    /// The peer is too slow: the connection is to end.
    Overrun,
}

/// The messages of one connection, the oldest first.
pub(crate) struct Outbox {
    messages: VecDeque<Box<[u8]>>,
    /// Bytes of the first one that the kernel has taken.
    sent_of_first: usize,
    /// Messages, from the first on, that the worker is sending now.
    in_flight: usize,
    /// Bytes that the kernel has not taken.
    bytes: usize,
    max_bytes: usize,
    policy: SlowConsumer,
    overrun: bool,
}

impl Outbox {
    pub(crate) const fn new(policy: SlowConsumer, max_bytes: usize) -> Self {
        Self {
            messages: VecDeque::new(),
            sent_of_first: 0,
            in_flight: 0,
            bytes: 0,
            max_bytes,
            policy,
            overrun: false,
        }
    }

    pub(crate) const fn set_policy(&mut self, policy: SlowConsumer) {
        self.policy = policy;
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the kernel has taken a part of a message.
    pub(crate) const fn is_mid_message(&self) -> bool {
        self.sent_of_first > 0
    }

    /// Whether the peer proved too slow for its policy.
    pub(crate) const fn is_overrun(&self) -> bool {
        self.overrun
    }

    /// Takes a message in, as the policy allows. A peer is slow only while the kernel has
    /// `refused` more for it; else what waits does so for the worker.
    pub(crate) fn push(&mut self, message: Box<[u8]>, refused: bool) -> Pushed {
        if self.overrun {
            return Pushed::Overrun;
        }
        let full = !self.fits(message.len());
        match self.policy {
            SlowConsumer::DropOld if full && self.could_fit(message.len()) => {
                let dropped = self.make_room(message.len());
                self.keep(message, dropped)
            }
            SlowConsumer::DropOld | SlowConsumer::DropNew if full => Pushed::Dropped,
            SlowConsumer::Buffer(most) if full || self.messages.len() >= most => {
                self.give_up(refused)
            }
            SlowConsumer::Disconnect if full || refused => self.give_up(refused),
            _ => self.keep(message, 0),
        }
    }

    fn keep(&mut self, message: Box<[u8]>, dropped: u64) -> Pushed {
        self.bytes += message.len();
        self.messages.push_back(message);
        Pushed::Kept { dropped }
    }

    fn fits(&self, bytes: usize) -> bool {
        let most = match self.policy {
            SlowConsumer::Buffer(most) => most.max(MAX_MESSAGES),
            _ => MAX_MESSAGES,
        };
        self.bytes + bytes <= self.max_bytes && self.messages.len() < most
    }

    /// Whether there would be room if all were dropped that may be.
    fn could_fit(&self, bytes: usize) -> bool {
        let begun = self.messages.iter().take(self.begun());
        let staying: usize = begun.map(|message| message.len()).sum();
        staying - self.sent_of_first + bytes <= self.max_bytes
    }

    /// Drops the oldest until there is room, which [`could_fit`](Self::could_fit) has promised.
    fn make_room(&mut self, bytes: usize) -> u64 {
        let mut dropped = 0;
        while !self.fits(bytes)
            && let Some(message) = self.messages.remove(self.begun())
        {
            self.bytes -= message.len();
            dropped += 1;
        }
        dropped
    }

    /// Messages, from the first on, of which the kernel has or may have a part.
    fn begun(&self) -> usize {
        self.in_flight.max(usize::from(self.is_mid_message()))
    }

    const fn give_up(&mut self, refused: bool) -> Pushed {
        self.overrun = refused;
        if refused {
            Pushed::Overrun
        } else {
            Pushed::Full
        }
    }

    /// Copies what waits into `buffer`, as much as it holds, and returns how much that is. What
    /// the kernel takes of it is told by [`sent`](Self::sent).
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        self.in_flight = 0;
        let mut skip = self.sent_of_first;
        for message in &self.messages {
            let rest = &message[skip..];
            let part = rest.len().min(buffer.len() - filled);
            if part == 0 {
                break;
            }
            buffer[filled..filled + part].copy_from_slice(&rest[..part]);
            filled += part;
            skip = 0;
            self.in_flight += 1;
        }
        filled
    }

    /// The oldest message, for a socket that sends each by itself.
    pub(crate) fn fill_one(&mut self, buffer: &mut [u8]) -> usize {
        let length = self
            .messages
            .front()
            .map_or(0, |message| message.len().min(buffer.len()));
        self.fill(&mut buffer[..length])
    }

    /// The kernel took `length` bytes of what was filled in.
    pub(crate) fn sent(&mut self, mut length: usize) {
        self.bytes -= length;
        self.in_flight = 0;
        while let Some(first) = self.messages.front() {
            let rest = first.len() - self.sent_of_first;
            if length < rest {
                self.sent_of_first += length;
                break;
            }
            length -= rest;
            self.sent_of_first = 0;
            self.messages.pop_front();
        }
        if self.messages.is_empty() {
            self.messages.shrink_to(SPARE_MESSAGES);
        }
    }

    /// The kernel takes no more: who may not wait proved too slow.
    pub(crate) fn block(&mut self) {
        self.overrun |= self.policy == SlowConsumer::Disconnect && self.bytes > 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Outbox, Pushed};
    use crate::service::SlowConsumer;

    fn message(number: u8, length: usize) -> Box<[u8]> {
        vec![number; length].into()
    }

    const REFUSED: bool = true;
    const KEPT: Pushed = Pushed::Kept { dropped: 0 };

    #[test]
    fn the_oldest_make_room_for_the_newest() {
        let mut outbox = Outbox::new(SlowConsumer::DropOld, 10);
        assert_eq!(outbox.push(message(1, 4), REFUSED), KEPT);
        assert_eq!(outbox.push(message(2, 4), REFUSED), KEPT);
        assert_eq!(
            outbox.push(message(3, 8), REFUSED),
            Pushed::Kept { dropped: 2 }
        );
        let mut buffer = [0; 64];
        assert_eq!(outbox.fill(&mut buffer), 8);
        assert_eq!(buffer[..8], [3; 8]);
    }

    #[test]
    fn the_newest_is_not_taken() {
        let mut outbox = Outbox::new(SlowConsumer::DropNew, 10);
        assert_eq!(outbox.push(message(1, 8), REFUSED), KEPT);
        assert_eq!(outbox.push(message(2, 4), REFUSED), Pushed::Dropped);
        assert_eq!(outbox.push(message(3, 2), REFUSED), KEPT);
        assert_eq!(outbox.bytes(), 10);
    }

    #[test]
    fn so_many_messages_may_wait_and_no_more() {
        let mut outbox = Outbox::new(SlowConsumer::Buffer(2), 100);
        assert_eq!(outbox.push(message(1, 1), REFUSED), KEPT);
        assert_eq!(outbox.push(message(2, 1), REFUSED), KEPT);
        assert_eq!(outbox.push(message(3, 1), REFUSED), Pushed::Overrun);
        assert!(outbox.is_overrun());
        assert_eq!(outbox.push(message(4, 1), REFUSED), Pushed::Overrun);
    }

    #[test]
    fn no_peer_is_slow_before_the_kernel_refuses() {
        for policy in [SlowConsumer::Buffer(2), SlowConsumer::Disconnect] {
            let mut outbox = Outbox::new(policy, 10);
            assert_eq!(outbox.push(message(1, 6), !REFUSED), KEPT);
            assert_eq!(outbox.push(message(2, 4), !REFUSED), KEPT);
            assert_eq!(outbox.push(message(3, 1), !REFUSED), Pushed::Full);
            assert!(!outbox.is_overrun());
            assert_eq!(outbox.push(message(3, 1), REFUSED), Pushed::Overrun);
            assert!(outbox.is_overrun());
        }
    }

    #[test]
    fn none_may_wait_while_the_kernel_refuses_other_output() {
        let mut outbox = Outbox::new(SlowConsumer::Disconnect, 10);
        assert_eq!(outbox.push(message(1, 1), REFUSED), Pushed::Overrun);
    }

    #[test]
    fn none_is_dropped_for_one_that_does_not_fit_then_either() {
        let mut outbox = Outbox::new(SlowConsumer::DropOld, 10);
        assert_eq!(outbox.push(message(1, 8), REFUSED), KEPT);
        let mut buffer = [0; 64];
        assert_eq!(outbox.fill(&mut buffer), 8);
        outbox.sent(1);
        assert_eq!(outbox.push(message(2, 1), REFUSED), KEPT);
        assert_eq!(outbox.push(message(3, 1), REFUSED), KEPT);
        assert_eq!(outbox.push(message(4, 4), REFUSED), Pushed::Dropped);
        assert_eq!(
            outbox.push(message(5, 3), REFUSED),
            Pushed::Kept { dropped: 2 }
        );
        assert_eq!(outbox.bytes(), 10);
    }

    #[test]
    fn none_may_wait_once_the_kernel_refuses() {
        let mut outbox = Outbox::new(SlowConsumer::Disconnect, 100);
        assert_eq!(outbox.push(message(1, 8), !REFUSED), KEPT);
        let mut buffer = [0; 64];
        assert_eq!(outbox.fill(&mut buffer), 8);
        outbox.sent(7);
        assert!(!outbox.is_overrun());
        outbox.block();
        assert!(outbox.is_overrun());
    }

    #[test]
    fn a_message_of_which_a_part_is_sent_is_never_dropped() {
        let mut outbox = Outbox::new(SlowConsumer::DropOld, 10);
        assert_eq!(outbox.push(message(1, 8), REFUSED), KEPT);
        let mut buffer = [0; 64];
        assert_eq!(outbox.fill(&mut buffer), 8);
        outbox.sent(3);
        assert!(outbox.is_mid_message());
        assert_eq!(outbox.push(message(2, 6), REFUSED), Pushed::Dropped);
        assert_eq!(outbox.push(message(3, 5), REFUSED), KEPT);
        assert_eq!(outbox.fill(&mut buffer), 10);
        assert_eq!(buffer[..10], [1, 1, 1, 1, 1, 3, 3, 3, 3, 3]);
    }

    #[test]
    fn what_is_being_sent_is_not_dropped() {
        let mut outbox = Outbox::new(SlowConsumer::DropOld, 10);
        assert_eq!(outbox.push(message(1, 5), REFUSED), KEPT);
        assert_eq!(outbox.push(message(2, 5), REFUSED), KEPT);
        let mut buffer = [0; 64];
        assert_eq!(outbox.fill(&mut buffer), 10);
        assert_eq!(outbox.push(message(3, 5), REFUSED), Pushed::Dropped);
        outbox.sent(10);
        assert_eq!(outbox.bytes(), 0);
    }

    proptest! {
        /// Whatever is pushed, dropped and sent in whatever pieces: what comes out are whole
        /// messages in the order in which they were pushed, and never more than the limit waits.
        #[test]
        fn messages_come_out_whole_and_in_order(
            policy in prop_oneof![
                Just(SlowConsumer::DropOld),
                Just(SlowConsumer::DropNew),
                (1usize..6).prop_map(SlowConsumer::Buffer),
            ],
            refused in any::<bool>(),
            steps in prop::collection::vec((any::<bool>(), 1usize..20, 0usize..24), 1..80),
        ) {
            const MAX_BYTES: usize = 40;
            let mut outbox = Outbox::new(policy, MAX_BYTES);
            let mut buffer = [0; 24];
            let mut out: Vec<u8> = Vec::new();
            let mut lengths = Vec::new();
            let mut kept = Vec::new();
            let mut take = |outbox: &mut Outbox, most: usize| {
                let filled = outbox.fill(&mut buffer);
                let sent = filled.min(most);
                out.extend_from_slice(&buffer[..sent]);
                outbox.sent(sent);
                filled
            };
            for (push, length, most) in steps {
                if push {
                    let number = u8::try_from(lengths.len()).expect("at most 80");
                    lengths.push(length);
                    if let Pushed::Kept { .. } = outbox.push(message(number, length), refused) {
                        kept.push(number);
                    }
                } else {
                    take(&mut outbox, most);
                }
                prop_assert!(outbox.bytes() <= MAX_BYTES);
            }
            while take(&mut outbox, usize::MAX) > 0 {}
            prop_assert_eq!(outbox.bytes(), 0);
            let runs: Vec<(u8, usize)> = out
                .chunk_by(|one, other| one == other)
                .map(|run| (run[0], run.len()))
                .collect();
            for (number, length) in &runs {
                prop_assert_eq!(*length, lengths[usize::from(*number)]);
                prop_assert!(kept.contains(number));
            }
            prop_assert!(runs.is_sorted());
        }
    }
}
