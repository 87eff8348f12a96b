//! What is counted: of a context about its own work, of a service about all its connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::reason::Reason;

/// A number that one thread raises and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Adds one if the number stays within `limit`.
    pub(crate) fn add_below(&self, limit: u64) -> bool {
        let next = |number| (number < limit).then_some(number + 1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .is_ok()
    }

    /// Takes `amount` away.
    pub fn subtract(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    /// Raises the number to `value`, if it is less.
    pub fn raise_to(&self, value: u64) {
        if self.get() < value {
            self.0.fetch_max(value, Ordering::Relaxed);
        }
    }

    /// Replaces the number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What is counted; every number only grows unless its text says otherwise.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
            reasons: [Counter; Reason::NAMES.len()],
            callback_ns: Counter,
        }

        impl Counters {
            /// Names and values, in a fixed order.
            #[must_use]
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Connections that are open now, or on their way in.
    active,
    /// Descriptors that became a connection.
    accepted,
    /// Connections that ended.
    closed,
    /// Descriptors turned away because there was no place.
    refused,
    /// Connections that the demultiplexer watches now (of a context).
    parked,
    /// Times a silent connection was parked (of a context).
    parkings,
    /// Readiness reports of the demultiplexer (of a context).
    wakes,
    /// Times that data came in and was handed to a protocol.
    reads,
    /// Calls into a protocol.
    callbacks,
    /// Microseconds spent in calls into a protocol.
    callback_us,
    /// Microseconds that the longest call into a protocol took.
    longest_callback_us,
    /// Callbacks that failed.
    exceptions,
    /// Timeouts: those a protocol had set, and those that ended a connection.
    timeouts,
    /// Pushed messages that were dropped because the peer was slow.
    drops,
    /// Bytes read from descriptors.
    bytes_in,
    /// Bytes that the kernel took.
    bytes_out,
    /// Connections that had something to do when the present turn began (of a context); what is
    /// still on its way to the worker adds to it, see [`Door::depth`](crate::Door::depth).
    queue_depth,
}

impl Counters {
    /// Connections that ended, by the name of the reason.
    #[must_use]
    pub fn closed_by(&self) -> Vec<(&'static str, u64)> {
        let numbers = self.reasons.iter().map(Counter::get);
        Reason::NAMES.into_iter().zip(numbers).collect()
    }

    /// A connection ended.
    pub(crate) fn count_end(&self, reason: Reason) {
        self.closed.add(1);
        self.reasons[reason.index()].add(1);
        // One that a protocol had set was counted when it told the protocol.
        if reason.is_timeout() && reason != Reason::Timeout {
            self.timeouts.add(1);
        }
    }

    /// A call into a protocol took so long.
    pub fn count_callback(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.callbacks.add(1);
        // Many take less than a microsecond: what is left of one goes to the next.
        let before = self.callback_ns.0.fetch_add(nanos, Ordering::Relaxed);
        let after = before.wrapping_add(nanos);
        self.callback_us
            .add((after / 1_000).saturating_sub(before / 1_000));
        self.longest_callback_us.raise_to(nanos / 1_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_callbacks_add_up() {
        let counters = Counters::default();
        for _ in 0..10 {
            counters.count_callback(Duration::from_nanos(450));
        }
        counters.count_callback(Duration::from_micros(3));
        assert_eq!(counters.callbacks.get(), 11);
        assert_eq!(counters.callback_us.get(), 7);
        assert_eq!(counters.longest_callback_us.get(), 3);
    }
}
