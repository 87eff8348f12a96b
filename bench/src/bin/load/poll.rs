//! An epoll whose events are told by the number of the slot.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::Result;

const BATCH: usize = 1024;

pub(crate) struct Poll {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poll {
    pub(crate) fn new() -> Result<Poll> {
        Ok(Poll {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); BATCH],
        })
    }

    pub(crate) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    pub(crate) fn watch(&self, socket: impl AsFd, slot: usize, flags: EpollFlags) -> Result<()> {
        Ok(self
            .epoll
            .add(socket, EpollEvent::new(flags, slot as u64))?)
    }

    /// The slots that are ready, as soon as there is one; none when `until` has come.
    pub(crate) fn wait(&mut self, until: Instant) -> Result<Vec<(usize, EpollFlags)>> {
        let left = until.saturating_duration_since(Instant::now());
        let ready = match self.epoll.wait(&mut self.events, timeout(left)) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let ready = self.events[..ready].iter();
        Ok(ready
            .map(|event| (event.data() as usize, event.events()))
            .collect())
    }
}

/// Rounded up, so that the last wait before a deadline does not spin.
pub(crate) fn timeout(left: Duration) -> EpollTimeout {
    let millis = left.as_micros().div_ceil(1000);
    EpollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX))
}
