//! What is counted: of a context about its own work, of a service about all its connections.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::reason::Reason;

/// A number that any thread may change and read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Adds `amount` where one thread alone, the worker, ever changes the number: without the bus
    /// lock that [`add`](Self::add) takes, of which a request would need a dozen.
    pub fn raise(&self, amount: u64) {
        self.set(self.get().wrapping_add(amount));
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

    /// Replaces the number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn merge(&self, other: &Self) {
        self.add(other.get());
    }
}

/// A time that one thread alone adds to and any thread reads, in microseconds. Kept in
/// nanoseconds, for many additions are less than a microsecond.
#[derive(Debug, Default)]
pub struct Micros(Counter);

impl Micros {
    fn raise(&self, nanos: u64) {
        self.0.raise(nanos);
    }

    /// The microseconds now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get() / 1_000
    }

    fn merge(&self, other: &Self) {
        self.0.merge(&other.0);
    }
}

/// The longest of many times, in microseconds.
#[derive(Debug, Default)]
pub struct Longest(Counter);

impl Longest {
    fn raise_to(&self, nanos: u64) {
        if self.0.get() < nanos {
            self.0.set(nanos);
        }
    }

    /// The microseconds now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get() / 1_000
    }

    fn merge(&self, other: &Self) {
        self.raise_to(other.0.get());
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        /// What is counted; every number only grows unless its text says otherwise.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: $kind,)*
            reasons: [Counter; Reason::NAMES.len()],
        }

        impl Counters {
            /// Names and values, in a fixed order.
            #[must_use]
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }

            /// Adds what others have counted.
            pub(crate) fn merge(&self, other: &Self) {
                $(self.$name.merge(&other.$name);)*
                for (sum, number) in self.reasons.iter().zip(&other.reasons) {
                    sum.merge(number);
                }
            }
        }
    };
}

counters! {
    /// Connections that are open now, or on their way in.
    active: Counter,
    /// Descriptors that became a connection.
    accepted: Counter,
    /// Connections that ended.
    closed: Counter,
    /// Descriptors turned away because there was no place.
    refused: Counter,
    /// Connections that the demultiplexer watches now (of a context).
    parked: Counter,
    /// Times a silent connection was parked (of a context).
    parkings: Counter,
    /// Readiness reports of the demultiplexer (of a context).
    wakes: Counter,
    /// Times that data came in and was handed to a protocol.
    reads: Counter,
    /// Calls into a protocol (of Python).
    callbacks: Counter,
    /// Microseconds spent in calls into a protocol.
    callback_us: Micros,
    /// Microseconds that the longest call into a protocol took.
    longest_callback_us: Longest,
    /// Callbacks that failed.
    exceptions: Counter,
    /// Timeouts: those a protocol had set, and those that ended a connection.
    timeouts: Counter,
    /// Pushed messages that were dropped because the peer was slow.
    drops: Counter,
    /// Bytes read from descriptors.
    bytes_in: Counter,
    /// Bytes that the kernel took.
    bytes_out: Counter,
    /// Connections that had something to do when the present turn began (of a context); what is
    /// still on its way to the worker adds to it, see [`Door::depth`](crate::Door::depth).
    queue_depth: Counter,
}

impl Counters {
    /// Connections that ended, by the name of the reason.
    #[must_use]
    pub fn closed_by(&self) -> Vec<(&'static str, u64)> {
        let numbers = self.reasons.iter().map(Counter::get);
        Reason::NAMES.into_iter().zip(numbers).collect()
    }

    /// A connection ended. Told by its worker.
    pub(crate) fn count_end(&self, reason: Reason) {
        self.closed.raise(1);
        self.reasons[reason.index()].raise(1);
        // One that a protocol had set was counted when it told the protocol.
        if reason.is_timeout() && reason != Reason::Timeout {
            self.timeouts.raise(1);
        }
    }

    /// A call into a protocol took so many nanoseconds. Told by its worker.
    pub fn count_callback(&self, nanos: u64) {
        self.callbacks.raise(1);
        self.callback_us.raise(nanos);
        self.longest_callback_us.raise_to(nanos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_callbacks_add_up() {
        let counters = Counters::default();
        for _ in 0..10 {
            counters.count_callback(450);
        }
        counters.count_callback(3_000);
        assert_eq!(counters.callbacks.get(), 11);
        assert_eq!(counters.callback_us.get(), 7);
        assert_eq!(counters.longest_callback_us.get(), 3);
    }

    #[test]
    fn what_several_have_counted_adds_up() {
        let sum = Counters::default();
        for nanos in [1_500, 2_600] {
            let part = Counters::default();
            part.count_callback(nanos);
            part.count_end(Reason::IdleTimeout);
            sum.merge(&part);
        }
        assert_eq!((sum.callbacks.get(), sum.callback_us.get()), (2, 4));
        assert_eq!(sum.longest_callback_us.get(), 2);
        assert_eq!((sum.closed.get(), sum.timeouts.get()), (2, 2));
        assert!(sum.closed_by().contains(&("idle_timeout", 2)));
    }
}
