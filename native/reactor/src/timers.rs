//! When connections have to be looked at because time has passed.
//!
//! A deadline nearly always moves away: each byte puts off the end of a silence. So a
//! connection is entered once and stays where it is; when its time has come the engine works
//! out the real deadline, and enters it again if that is later. A deadline that comes nearer
//! is a new entry, and the old one is known by its time to be stale. A byte costs no work
//! here, and a connection one or two entries of 24 bytes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::inbox::Key;

/// The heap may hold so many entries more than there are connections, and twice as many.
const SPARE_ENTRIES: usize = 1024;

/// The entries of one engine, the next one first.
#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Key)>>,
}

impl Timers {
    /// Enters a connection.
    pub(crate) fn enter(&mut self, at: Instant, key: Key) {
        self.heap.push(Reverse((at, key)));
    }

    /// When the next entry is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out an entry that is due at `now`.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<(Instant, Key)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// Throws stale entries away once they are the greater part: of connections that are over,
    /// or whose deadline came nearer.
    pub(crate) fn tidy(
        &mut self,
        connections: usize,
        mut is_fresh: impl FnMut(Instant, Key) -> bool,
    ) {
        if self.heap.len() > 2 * connections + SPARE_ENTRIES {
            self.heap.retain(|Reverse((at, key))| is_fresh(*at, *key));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::{SPARE_ENTRIES, Timers};
    use crate::inbox::Key;

    const fn key(slot: u32) -> Key {
        Key {
            slot,
            generation: 0,
        }
    }

    #[test]
    fn what_is_due_comes_in_the_order_of_time() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        for ms in [30, 10, 20] {
            timers.enter(after(ms), key(u32::try_from(ms).expect("small")));
        }
        assert_eq!(timers.take_due(start), None);
        assert_eq!(timers.next(), Some(after(10)));
        assert_eq!(timers.take_due(after(20)), Some((after(10), key(10))));
        assert_eq!(timers.take_due(after(20)), Some((after(20), key(20))));
        assert_eq!(timers.take_due(after(20)), None);
    }

    #[test]
    fn stale_entries_do_not_pile_up() {
        let start = Instant::now();
        let mut timers = Timers::default();
        for slot in 0..100_000 {
            timers.enter(start + Duration::from_secs(60), key(slot));
            timers.tidy(1, |_, key| key.slot == slot);
        }
        assert!(timers.heap.len() <= SPARE_ENTRIES + 2);
    }

    proptest! {
        /// Each step enters a deadline so many milliseconds from now, or lets some go by.
        #[test]
        fn nothing_is_due_early_late_or_twice(
            steps in prop::collection::vec((any::<bool>(), 0u64..50), 0..200)
        ) {
            let mut now = Instant::now();
            let mut timers = Timers::default();
            let mut awaited = Vec::new();
            for (number, (enters, ms)) in (0..).zip(steps) {
                if enters {
                    let at = now + Duration::from_millis(ms);
                    timers.enter(at, key(number));
                    awaited.push((at, key(number)));
                } else {
                    now += Duration::from_millis(ms);
                    awaited.sort_unstable();
                    let later = awaited.split_off(awaited.partition_point(|(at, _)| *at <= now));
                    let due: Vec<_> = std::iter::from_fn(|| timers.take_due(now)).collect();
                    prop_assert_eq!(due, std::mem::replace(&mut awaited, later));
                }
                prop_assert_eq!(timers.next(), awaited.iter().map(|(at, _)| *at).min());
            }
        }
    }
}
