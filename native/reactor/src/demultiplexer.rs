//! Where idle connections are parked.

use std::io;
use std::sync::Arc;

use crate::descriptor::Descriptor;
use crate::inbox::{Key, Mailbox};

/// What a parked connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Data, or the end of the stream.
    Read,
    /// Room to write.
    Write,
}

/// Watches connections that have nothing to say, so that a worker does not have to.
///
/// It reports each armed connection once, through
/// [`Mailbox::ready`](crate::inbox::Mailbox::ready).
pub trait Demultiplexer {
    /// What it keeps for one connection from the first time it is parked to its end.
    type Seat;

    /// Makes a seat. Nothing is watched yet.
    ///
    /// # Errors
    /// The demultiplexer cannot take the connection; it stays with the worker.
    fn seat(
        &mut self,
        key: Key,
        descriptor: &Arc<Descriptor>,
        mailbox: &Arc<Mailbox>,
    ) -> io::Result<Self::Seat>;

    /// Watches for `interest`, once.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    fn arm(&mut self, seat: &Self::Seat, interest: Interest) -> io::Result<()>;

    /// Watches no more and gives the descriptor up, at once or soon after.
    fn retire(&mut self, seat: Self::Seat);
}

/// Parks nothing: every connection stays with its worker.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoDemultiplexer;

impl Demultiplexer for NoDemultiplexer {
    type Seat = std::convert::Infallible;

    fn seat(&mut self, _: Key, _: &Arc<Descriptor>, _: &Arc<Mailbox>) -> io::Result<Self::Seat> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn arm(&mut self, seat: &Self::Seat, _: Interest) -> io::Result<()> {
        match *seat {}
    }

    fn retire(&mut self, seat: Self::Seat) {
        match seat {}
    }
}
