//! What time it is for an engine: by the system, or by whoever simulates.

use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The monotonic clock of the system.
    System,
    /// It stands until it is moved.
    ByHand(Instant),
}

impl Clock {
    pub(crate) fn now(self) -> Instant {
        match self {
            Self::System => Instant::now(),
            Self::ByHand(now) => now,
        }
    }

    /// From here on it stands, so much later than it is now; a clock that would overflow
    /// stays where it is.
    pub(crate) fn advance(&mut self, by: Duration) {
        let now = self.now();
        *self = Self::ByHand(now.checked_add(by).unwrap_or(now));
    }
}
