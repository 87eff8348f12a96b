//! What a context counts about its own work.

use std::sync::atomic::{AtomicU64, Ordering};

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
        /// What a context counts; every number only grows unless its text says otherwise.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
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
    connections,
    /// Descriptors that became a connection.
    adopted,
    /// Connections that ended.
    closed,
    /// Descriptors turned away because the context was full.
    refused,
    /// Connections that the demultiplexer watches now.
    parked,
    /// Times a silent connection was parked.
    parkings,
    /// Readiness reports of the demultiplexer.
    wakes,
    /// Calls into a protocol.
    callbacks,
    /// Callbacks that failed.
    exceptions,
    /// Bytes read from descriptors.
    bytes_in,
    /// Bytes that the kernel took.
    bytes_out,
}
