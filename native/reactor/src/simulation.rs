//! The engine with a simulated kernel and a clock that is moved by hand: for tests and fuzzing.
//!
//! It is the engine that serves real sockets, with all its rules; only what would be a system
//! call on a socket goes to a script, and the time stands until it is moved. So what a handler
//! is told depends on nothing but the script.
//!
//! ```
//! use reactor::simulation::{Origin, Simulation};
//! use reactor::{Action, ConnectionHandler, EventHandler, Events};
//!
//! struct Shout;
//!
//! impl EventHandler for Shout {
//!     fn handle_read(&mut self, connection: &mut ConnectionHandler, data: &[u8]) -> Action {
//!         connection.write(&data.to_ascii_uppercase());
//!         Action::ReadPending
//!     }
//! }
//!
//! let mut simulation = Simulation::<Events>::new()?;
//! let peer = simulation.connect(Origin::default(), Box::new(Shout)).expect("room");
//! peer.accept(3);
//! peer.send(b"hello");
//! simulation.run(&mut Events)?;
//! assert_eq!(peer.take(), b"HEL");
//! peer.unblock();
//! simulation.run(&mut Events)?;
//! assert_eq!(peer.take(), b"LO");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use crate::address::Address;
use crate::counters::Counters;
use crate::demultiplexer::NoDemultiplexer;
use crate::descriptor::Descriptor;
use crate::engine::{Engine, Settings, Turn};
use crate::handler::Handler;
use crate::inbox::{Door, SendError};
use crate::kind::Kind;
use crate::link::Link;
use crate::poller::Readiness;
use crate::service::{Limits, Service, Stage};
use crate::wire::Wire;

/// So many turns may go by without a byte in either direction and without a connection that
/// comes or ends. A burst of as many messages as an inbox holds needs sixteen.
const MAX_IDLE_TURNS: u32 = 1000;

/// What is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// What it is for the handler.
    pub kind: Kind,
    /// The address of the other end, if it has one.
    pub peer: Option<Address>,
}

impl Default for Origin {
    /// A TCP connection from an address that is for documentation (RFC 5737).
    fn default() -> Self {
        let host = Ipv4Addr::new(192, 0, 2, 1);
        Self {
            kind: Kind::Tcp,
            peer: Some(Address::Inet(SocketAddr::from((host, 50_000)))),
        }
    }
}

/// Why a simulation did not come to rest.
#[derive(Debug)]
pub enum Unrest {
    /// A handler keeps the engine busy with nothing: on a real socket it would take a whole core.
    Spinning,
    /// The engine's poller failed.
    Failed(io::Error),
}

impl fmt::Display for Unrest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spinning => write!(
                out,
                "{MAX_IDLE_TURNS} turns went by in which no byte came or went, and there is \
                 still something to do"
            ),
            Self::Failed(error) => write!(out, "the poller failed: {error}"),
        }
    }
}

impl std::error::Error for Unrest {}

/// An engine whose connections are simulated. Nothing happens but in [`run`](Self::run) and
/// [`advance`](Self::advance).
pub struct Simulation<H: Handler> {
    engine: Engine<H, NoDemultiplexer>,
    door: Door<H::Opening>,
    service: Arc<Service>,
    over: bool,
}

impl<H: Handler> Simulation<H> {
    /// A simulation without connections.
    ///
    /// # Errors
    /// The process has no descriptor left: the engine has its poller, though nothing is
    /// watched there.
    pub fn new() -> io::Result<Self> {
        Self::with_limits(Limits::default())
    }

    /// The same, with limits for its connections.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn with_limits(limits: Limits) -> io::Result<Self> {
        let settings = Settings {
            max_connections: MAX_CONNECTIONS,
            linger: None,
        };
        let (mut engine, door) = Engine::new(settings, NoDemultiplexer)?;
        engine.advance(Duration::ZERO);
        Ok(Self {
            engine,
            door,
            service: Service::new(String::new(), limits, u64::MAX),
            over: false,
        })
    }

    /// Hands a new connection in. Its handler hears of it in the next [`run`](Self::run).
    ///
    /// # Errors
    /// There are a hundred connections, or the simulation was stopped.
    pub fn connect(&self, origin: Origin, opening: H::Opening) -> Result<Peer, SendError> {
        let wire = Arc::new(Wire::new(origin.kind.is_datagram()));
        let descriptor = Descriptor::simulated(Arc::clone(&wire), origin.kind, origin.peer);
        let link = Arc::clone(descriptor.link());
        let admission = self.service.admit().ok_or(SendError::Full)?;
        self.door
            .admit(descriptor, opening, admission)
            .map_err(|(error, ..)| error)?;
        Ok(Peer { wire, link })
    }

    /// Lets the engine work until there is nothing to do. The time stands meanwhile.
    ///
    /// # Errors
    /// That never comes, or the poller failed.
    pub fn run(&mut self, handler: &mut H) -> Result<(), Unrest> {
        let mut idle_turns = 0;
        let mut progress = self.progress();
        while !self.over {
            match self.engine.turn(handler, Some(Duration::ZERO)) {
                Ok(Turn::Again) if self.engine.is_quiet() => break,
                Ok(Turn::Again) => {}
                Ok(Turn::Stopped) => self.over = true,
                Err(error) => {
                    self.over = true;
                    return Err(Unrest::Failed(error));
                }
            }
            let before = std::mem::replace(&mut progress, self.progress());
            idle_turns = if before == progress {
                idle_turns + 1
            } else {
                0
            };
            if idle_turns == MAX_IDLE_TURNS {
                return Err(Unrest::Spinning);
            }
        }
        Ok(())
    }

    /// What a handler cannot do for ever without anybody's doing.
    fn progress(&self) -> [u64; 4] {
        let counters = self.counters();
        [
            &counters.bytes_in,
            &counters.bytes_out,
            &counters.accepted,
            &counters.closed,
        ]
        .map(crate::counters::Counter::get)
    }

    /// Moves the time forward, from one deadline to the next: each is met to the nanosecond.
    ///
    /// # Errors
    /// See [`run`](Self::run).
    pub fn advance(&mut self, handler: &mut H, by: Duration) -> Result<(), Unrest> {
        self.run(handler)?;
        let mut left = by;
        while let Some(due) = self.engine.until_next_timer().filter(|due| *due <= left) {
            self.engine.advance(due);
            left -= due;
            self.run(handler)?;
        }
        self.engine.advance(left);
        Ok(())
    }

    /// Asks the connections to end, as a listener does that is drained.
    pub fn drain(&self) {
        self.go_to(Stage::Draining);
    }

    /// Ends the connections, as a listener does at its deadline.
    pub fn end(&self) {
        self.go_to(Stage::Ending);
    }

    fn go_to(&self, stage: Stage) {
        self.service.set_stage(stage);
        self.door.mailbox().review();
    }

    /// Ends the connections and the engine.
    ///
    /// # Errors
    /// The poller failed; the connections have ended.
    pub fn stop(&mut self, handler: &mut H) -> Result<(), Unrest> {
        self.door.mailbox().stop();
        self.run(handler)
    }

    /// What the engine counts.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        self.engine.mailbox().counters()
    }

    /// Where messages to the handler itself go in.
    #[must_use]
    pub const fn door(&self) -> &Door<H::Opening> {
        &self.door
    }
}

const MAX_CONNECTIONS: usize = 100;

/// The other end of a simulated connection, and the kernel between. What is done here is
/// noticed in the next [`run`](Simulation::run).
pub struct Peer {
    wire: Arc<Wire>,
    link: Arc<Link>,
}

impl Peer {
    /// Sends a fragment of a stream, which is read by itself, or a datagram. After the end of the
    /// stream it is lost.
    pub fn send(&self, fragment: &[u8]) {
        self.report(self.wire.feed(fragment, None));
    }

    /// Sends a datagram in somebody's name.
    pub fn send_as(&self, sender: SocketAddr, datagram: &[u8]) {
        self.report(self.wire.feed(datagram, Some(sender)));
    }

    /// Ends the stream towards the handler; the other direction works on.
    pub fn half_close(&self) {
        self.report(self.wire.end());
    }

    /// Ends the connection with an error, like `ECONNRESET`. What was sent before is still read,
    /// and the next call fails. A datagram socket goes on after that.
    pub fn fail(&self, errno: Errno) {
        self.report(self.wire.fail(errno));
    }

    /// Takes so many bytes more. Before the first such call, or [`block`](Self::block), as many
    /// are taken as come.
    pub fn accept(&self, bytes: usize) {
        self.report(self.wire.make_room(Some(bytes)));
    }

    /// Takes nothing more.
    pub fn block(&self) {
        self.wire.block();
    }

    /// Takes as many bytes as come.
    pub fn unblock(&self) {
        self.report(self.wire.make_room(None));
    }

    /// Reports what need not be true, as a kernel may.
    pub fn report(&self, readiness: Readiness) {
        if let Some(descriptor) = self.link.descriptor() {
            descriptor.report(readiness);
        }
    }

    /// The bytes that were taken since this was last called.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        self.wire.take_sent().concat()
    }

    /// The same, as they were sent: by the call, and so datagram by datagram.
    #[must_use]
    pub fn take_pieces(&self) -> Vec<Vec<u8>> {
        self.wire.take_sent()
    }

    /// Whether the connection is still there.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.link.descriptor().is_some()
    }

    /// By which other threads reach the connection.
    #[must_use]
    pub const fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Peer({})", self.link.id())
    }
}
