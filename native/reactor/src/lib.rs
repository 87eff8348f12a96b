//! A reactor: one thread that waits for many descriptors and calls handlers for those that are
//! ready.
//!
//! This is the engine of py_reactor. It knows neither the BEAM nor Python: both use it through
//! [`Handler`], and a program in Rust may use it as it is.
//!
//! # A server in a few lines
//!
//! A [`Server`] owns an [`Acceptor`], which listens, and a [`Reactor`], which waits. For each
//! client it makes an [`EventHandler`], whose methods say what to do, and a [`ConnectionHandler`],
//! which keeps what is to be sent:
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use reactor::{Action, Address, ConnectionHandler, Endpoint, EventHandler, Server, ServerOptions};
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
//! let endpoint = Endpoint::Tcp("127.0.0.1:0".parse()?);
//! let server = Arc::new(Server::open(&endpoint, ServerOptions::default(), || Shout)?);
//! let running = std::thread::spawn({
//!     let server = Arc::clone(&server);
//!     move || server.run()
//! });
//!
//! let Address::Inet(address) = server.address() else { unreachable!("it is TCP") };
//! let mut client = TcpStream::connect(address)?;
//! client.write_all(b"hello")?;
//! let mut answer = [0; 5];
//! client.read_exact(&mut answer)?;
//! assert_eq!(&answer, b"HELLO");
//!
//! // The listening socket is closed, connections have a second to end, then they are closed.
//! server.stop(Duration::from_secs(1));
//! running.join().expect("no panic")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/echo.rs` is a whole program.
//!
//! # What a handler may do
//!
//! - Answer with an [`Action`]: wait for data, ask to be called when there is room to write,
//!   close, abort, pause. What it has [written](ConnectionHandler::write) is sent whatever it
//!   answers, and the kernel is asked for room only while it refuses bytes.
//! - Set a [timeout](ConnectionHandler::set_timeout), hold [reading](ConnectionHandler::hold_reading).
//! - Give its [`Link`] to other threads, which [send](Link::send) it messages through a bounded
//!   queue, [push](Link::push) bytes to its peer, [resume](Link::resume) it after a pause, or
//!   [close](Link::close) it.
//! - Panic: that costs this one connection.
//!
//! It may not wait: all connections of one reactor share its thread. Descriptors that no acceptor
//! made are [registered](Reactor::register): sockets of every kind, pipes, terminals. A socket that is
//! registered already, under whatever number, is refused. Limits on time and memory stand in
//! [`Limits`], what is counted in [`Counters`].
//!
//! # The life of one event
//!
//! 1. A [`Descriptor`] comes in through the [`Door`], or from a [`Source`] that is lent; the
//!    [`Handler`] makes a connection of it.
//! 2. The kernel reports data to the worker's poller, or to the [`Demultiplexer`] in
//!    which a silent connection is parked, which tells the worker's [`Mailbox`].
//! 3. In its next [`turn`](Engine::turn) the engine reads, calls
//!    [`readable`](Handler::readable) and gets an [`Action`]. What was received is handed over
//!    before the end of the stream; a connection that ended earlier in the same turn is skipped.
//! 4. A pure table, [`State::on`], turns state and action into a new state and an effect.
//! 5. The engine performs the effect: it writes, waits, flushes, or retires the
//!    connection, which is reported [`lost`](Handler::lost) exactly once.
//!
//! [`EventHandler`] stands on [`Handler`] by way of [`Events`]. Who needs another loop than
//! [`Reactor::run`], for instance inside of one that is there already, makes an [`Engine`] and
//! calls its turns.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod acceptor;
mod action;
mod address;
mod clock;
mod connection;
mod counters;
mod demultiplexer;
mod descriptor;
mod engine;
mod event_handler;
mod handler;
mod inbox;
mod kind;
mod link;
mod outbox;
mod poller;
mod reactor;
mod reason;
mod server;
mod service;
mod shards;
pub mod simulation;
mod source;
mod state;
mod timers;
mod wakeup;
mod wire;

/// The atomics of the wake-up: its model has others.
mod sync {
    pub(crate) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

pub use acceptor::{Accepted, Acceptor, Admitted, Endpoint, ListenOptions};
pub use action::Action;
pub use address::Address;
pub use counters::{Counter, Counters, Longest, Micros};
pub use demultiplexer::{Demultiplexer, Interest, NoDemultiplexer};
pub use descriptor::{Descriptor, Received};
pub use engine::{Engine, Groundwork, MAX_READ_BYTES, Settings, Turn};
pub use event_handler::{ConnectionHandler, EventHandler, Events, Registered};
pub use handler::{Flushed, Handler, Verdict};
pub use inbox::{Door, Key, Mailbox, Payload, SendError};
pub use kind::{AdoptError, Kind};
pub use link::{Link, Owner, PushError, Watcher};
pub use poller::Readiness;
pub use reactor::{Reactor, RegisterError};
pub use reason::Reason;
pub use server::{Server, ServerOptions};
pub use service::{Admission, Limits, Service, SlowConsumer, Stage};
pub use source::{Offer, Source};
pub use state::{Effect, Input, State};
