//! The classic way to serve a descriptor: an [`EventHandler`] for the events, and a
//! [`ConnectionHandler`] that buffers what it has to say.
//!
//! [`Events`] makes a [`Handler`] of them, which is what the engine calls.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use crate::action::Action;
use crate::address::Address;
use crate::descriptor::Descriptor;
use crate::handler::{Flushed, Handler, Verdict};
use crate::inbox::Payload;
use crate::kind::Kind;
use crate::link::{Link, Owner};
use crate::reason::Reason;

/// What happens to one descriptor.
///
/// All calls come from the thread that runs the reactor, one after the other. What they return
/// says what happens next. Bytes that were written to the `connection` are sent before that:
/// [`WritePending`](Action::WritePending) need not be said for them. Only
/// [`Pause`](Action::Pause) keeps them until the connection is [resumed](Link::resume), and
/// [`Abort`](Action::Abort) throws them away.
///
/// A panic costs this one connection, which is then over for [`Reason::Exception`].
pub trait EventHandler: Send {
    /// The reactor has taken the descriptor. Called once, before anything else.
    fn handle_open(&mut self, _connection: &mut ConnectionHandler) -> Action {
        Action::ReadPending
    }

    /// Data came: never empty, except for an empty datagram.
    fn handle_read(&mut self, connection: &mut ConnectionHandler, data: &[u8]) -> Action;

    /// The peer ended its stream, and may still read. Called once at most.
    fn handle_eof(&mut self, _connection: &mut ConnectionHandler) -> Action {
        Action::Close
    }

    /// All that was written is sent, and the kernel takes more. Called after an answer of
    /// [`WritePending`](Action::WritePending), until the answer is another one.
    fn handle_write(&mut self, _connection: &mut ConnectionHandler) -> Action {
        Action::ReadPending
    }

    /// The time is over that was set with [`ConnectionHandler::set_timeout`].
    fn handle_timeout(&mut self, _connection: &mut ConnectionHandler) -> Action {
        Action::Close
    }

    /// A message came over the connection's [`Link`], for instance the result of work that
    /// another thread did.
    fn handle_message(&mut self, _: &mut ConnectionHandler, _message: Payload) -> Action {
        Action::Continue
    }

    /// The server stops and asks its connections to end. The default closes as soon as there is
    /// nothing to read and nothing to write.
    fn handle_drain(&mut self, connection: &mut ConnectionHandler) -> Action {
        connection.close_when_idle();
        Action::Continue
    }

    /// The connection is over; its descriptor is closed right after. Called exactly once, as the
    /// last call.
    fn handle_close(&mut self, _connection: &ConnectionHandler, _reason: Reason) {}
}

/// One connection: where it leads, and what waits to be sent there.
///
/// What is written is kept and sent in one piece after the callback. The kernel is asked for room
/// only while something is left that it did not take, and while more than 64 KiB are left nothing
/// is read.
#[derive(Debug)]
pub struct ConnectionHandler {
    descriptor: Arc<Descriptor>,
    output: Vec<u8>,
    /// How much of `output` is sent.
    sent: usize,
    /// `handle_write` wants to be called.
    has_more: bool,
}

/// Beyond this a buffer that is empty gives its memory back.
const KEPT_BYTES: usize = 64 * 1024;

impl ConnectionHandler {
    const fn new(descriptor: Arc<Descriptor>) -> Self {
        Self {
            descriptor,
            output: Vec::new(),
            sent: 0,
            has_more: false,
        }
    }

    /// Keeps `bytes` to be sent. On a datagram socket each call is a datagram of its own, which
    /// goes to the sender of the last one at once, or is lost.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.descriptor.kind().is_datagram() {
            // A datagram may be lost anywhere on its way, and this is the first place.
            let _ = self.descriptor.send(bytes);
        } else {
            self.output.extend_from_slice(bytes);
        }
    }

    /// How many bytes wait to be sent.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Has [`EventHandler::handle_timeout`] called once, so long from now; `None`: not at all.
    /// It takes the place of what was set before.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        self.owner(|owner| owner.set_timeout(timeout));
    }

    /// Reads no more, or goes on reading. A peer that vanishes is noticed meanwhile.
    pub fn hold_reading(&self, hold: bool) {
        self.owner(|owner| owner.hold_reading(hold));
    }

    /// Closes as soon as there is nothing to read and nothing to write.
    pub fn close_when_idle(&self) {
        self.owner(Owner::close_when_idle);
    }

    /// By which other threads, and other handlers, know the connection: to close it, to push bytes,
    /// to send it a message.
    #[must_use]
    pub fn link(&self) -> &Arc<Link> {
        self.descriptor.link()
    }

    /// The other end, or the sender of the last datagram.
    #[must_use]
    pub fn peer(&self) -> Option<Address> {
        self.descriptor.peer()
    }

    /// What the descriptor is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.descriptor.kind()
    }

    /// The number of the descriptor, for logs.
    #[must_use]
    pub fn number(&self) -> RawFd {
        self.descriptor.number()
    }

    fn owner(&self, ask: impl FnOnce(&Owner)) {
        if let Some(owner) = self.descriptor.owner() {
            ask(owner);
        }
    }

    fn flush(&mut self) -> Flushed {
        if self.backlog() > 0 {
            match self.descriptor.send(&self.output[self.sent..]) {
                Ok(length) => {
                    self.sent += length;
                    if self.backlog() > 0 {
                        return Flushed::Blocked;
                    }
                }
                Err(errno) => return Flushed::Failed(Reason::Failed(errno)),
            }
        }
        self.sent = 0;
        self.output.clear();
        if self.output.capacity() > KEPT_BYTES {
            // Not cut down to what may be kept: to grow again costs more than to begin anew.
            self.output = Vec::new();
        }
        Flushed::All
    }

    /// What the engine has to do, where the handler said `action`.
    fn verdict(&mut self, action: Action) -> Verdict {
        self.has_more = match action {
            Action::WritePending => true,
            Action::Continue => self.has_more,
            Action::ReadPending | Action::Close | Action::Abort | Action::Pause => false,
        };
        Ok(self.after_sending(action))
    }

    /// What is to be done where what was written goes first.
    fn after_sending(&self, action: Action) -> Action {
        match action {
            Action::ReadPending | Action::Continue if self.backlog() > 0 => Action::WritePending,
            other => other,
        }
    }
}

impl io::Write for ConnectionHandler {
    /// Never fails: what cannot be sent ends the connection.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::write(self, bytes);
        Ok(bytes.len())
    }

    /// Does nothing: it is sent after the callback.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A handler of events, and its connection.
pub struct Registered {
    handler: Box<dyn EventHandler>,
    connection: ConnectionHandler,
}

/// Calls an [`EventHandler`] for each connection.
#[derive(Debug, Default, Clone, Copy)]
pub struct Events;

impl Handler for Events {
    type Connection = Registered;
    type Opening = Box<dyn EventHandler>;

    fn connected(
        &mut self,
        descriptor: &Arc<Descriptor>,
        mut handler: Box<dyn EventHandler>,
    ) -> Option<(Registered, Verdict)> {
        let mut connection = ConnectionHandler::new(Arc::clone(descriptor));
        let action = handler.handle_open(&mut connection);
        let verdict = connection.verdict(action);
        let registered = Registered {
            handler,
            connection,
        };
        Some((registered, verdict))
    }

    fn readable(&mut self, at: &mut Registered, _: &Arc<Descriptor>, data: &[u8]) -> Verdict {
        let action = at.handler.handle_read(&mut at.connection, data);
        at.connection.verdict(action)
    }

    fn eof(&mut self, at: &mut Registered, _: &Arc<Descriptor>) -> Verdict {
        let action = at.handler.handle_eof(&mut at.connection);
        at.connection.verdict(action)
    }

    fn writable(&mut self, at: &mut Registered, _: &Arc<Descriptor>) -> Verdict {
        match at.connection.flush() {
            Flushed::All if at.connection.has_more => {
                let action = at.handler.handle_write(&mut at.connection);
                at.connection.verdict(action)
            }
            Flushed::All => Ok(Action::ReadPending),
            Flushed::Blocked => Ok(Action::Continue),
            Flushed::Failed(reason) => Err(reason),
        }
    }

    fn flush(&mut self, at: &mut Registered, _: &Arc<Descriptor>) -> Flushed {
        at.connection.flush()
    }

    fn backlog(&mut self, at: &mut Registered) -> Option<usize> {
        Some(at.connection.backlog())
    }

    fn timeout(&mut self, at: &mut Registered, _: &Arc<Descriptor>) -> Verdict {
        let action = at.handler.handle_timeout(&mut at.connection);
        at.connection.verdict(action)
    }

    fn draining(&mut self, at: &mut Registered, _: &Arc<Descriptor>) -> Verdict {
        let action = at.handler.handle_drain(&mut at.connection);
        at.connection.verdict(action)
    }

    fn resumed(&mut self, at: &mut Registered, action: Action) -> Action {
        match action {
            Action::ReadPending => at.connection.after_sending(action),
            other => other,
        }
    }

    fn message(&mut self, at: &mut Registered, _: &Arc<Descriptor>, message: Payload) -> Verdict {
        let action = at.handler.handle_message(&mut at.connection, message);
        at.connection.verdict(action)
    }

    fn lost(&mut self, mut at: Registered, _: &Arc<Descriptor>, reason: Reason) {
        at.handler.handle_close(&at.connection, reason);
    }

    fn panicked(&mut self, descriptor: Option<&Arc<Descriptor>>, _message: &str) {
        // Rust has printed what happened, and where.
        if let Some(owner) = descriptor.and_then(|descriptor| descriptor.owner()) {
            owner.count(|counters| counters.exceptions.raise(1));
        }
    }
}
