//! What the engine calls: the protocol side of a connection.

use std::sync::Arc;

use crate::action::Action;
use crate::descriptor::Descriptor;
use crate::inbox::Payload;
use crate::reason::Reason;

/// The answer of a callback, or the reason why the connection ends without one.
pub type Verdict = Result<Action, Reason>;

/// How far a flush came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is buffered any more.
    All,
    /// The kernel takes no more for now.
    Blocked,
    /// The buffer cannot be sent.
    Failed(Reason),
}

/// Serves connections. All calls come from the worker's thread; a call may take as long
/// as it likes, at the cost of the other connections of the same context.
pub trait Handler {
    /// What is kept for one connection.
    type Connection;
    /// What comes with a new descriptor.
    type Opening: Send;

    /// A descriptor arrived. `None` refuses it: it is closed, and nothing more is said.
    fn connected(
        &mut self,
        descriptor: &Arc<Descriptor>,
        opening: Self::Opening,
    ) -> Option<(Self::Connection, Verdict)>;

    /// Data: never empty, except for an empty datagram.
    fn readable(
        &mut self,
        connection: &mut Self::Connection,
        descriptor: &Arc<Descriptor>,
        data: &[u8],
    ) -> Verdict;

    /// The peer ended its stream. Said once.
    fn eof(&mut self, connection: &mut Self::Connection, descriptor: &Arc<Descriptor>) -> Verdict;

    /// The kernel takes more, and the connection has something to write.
    fn writable(
        &mut self,
        connection: &mut Self::Connection,
        descriptor: &Arc<Descriptor>,
    ) -> Verdict;

    /// Sends what is buffered without asking the protocol.
    fn flush(&mut self, connection: &mut Self::Connection, descriptor: &Arc<Descriptor>)
    -> Flushed;

    /// Whether the last answer was given in so many words. One that only follows from silence
    /// does not end the handshake.
    fn was_explicit(&self) -> bool {
        true
    }

    /// How many bytes the connection has to write, asked while the kernel takes none. Below the
    /// high-water mark it is read on meanwhile. `None`, the default: nobody knows, and nothing is
    /// read.
    fn backlog(&mut self, _connection: &mut Self::Connection) -> Option<usize> {
        None
    }

    /// The time is over that was set with [`set_timeout`](crate::Owner::set_timeout).
    fn timeout(&mut self, _: &mut Self::Connection, _: &Arc<Descriptor>) -> Verdict {
        Ok(Action::Close)
    }

    /// The service takes no more connections and asks those that are there to end. Said once.
    /// The default closes as soon as there is nothing to do.
    fn draining(&mut self, _: &mut Self::Connection, descriptor: &Arc<Descriptor>) -> Verdict {
        if let Some(owner) = descriptor.owner() {
            owner.close_when_idle();
        }
        Ok(Action::Continue)
    }

    /// Somebody outside gave the connection an action. What it means for this connection; by
    /// default what it says.
    fn resumed(&mut self, _: &mut Self::Connection, action: Action) -> Action {
        action
    }

    /// A message came over the connection's [`Link`](crate::Link).
    fn message(
        &mut self,
        _: &mut Self::Connection,
        _: &Arc<Descriptor>,
        _message: Payload,
    ) -> Verdict {
        Ok(Action::Continue)
    }

    /// A message came that belongs to no connection.
    fn errand(&mut self, _errand: Payload) {}

    /// The connection is over. Said exactly once for every connection that
    /// [`connected`](Self::connected) made; the descriptor is closed right after.
    fn lost(&mut self, connection: Self::Connection, descriptor: &Arc<Descriptor>, reason: Reason);

    /// A call above panicked; the connection that it was for, if any, is being closed.
    fn panicked(&mut self, descriptor: Option<&Arc<Descriptor>>, message: &str);

    /// Runs `wait`, in which the worker may sleep.
    fn idle<T: Send>(&mut self, wait: impl FnOnce() -> T + Send) -> T {
        wait()
    }
}
