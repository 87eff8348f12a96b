//! The event engine of py_reactor.
//!
//! It owns descriptors, learns from the kernel when they are ready, and calls a
//! [`Handler`] whose answers decide what happens next. It knows neither the BEAM nor
//! Python.
//!
//! # One event
//!
//! 1. A [`Descriptor`] comes in through the [`Door`]; the [`Handler`] makes a connection
//!    of it.
//! 2. The kernel reports data to the worker's poller, or to the [`Demultiplexer`] in
//!    which a silent connection is parked, which tells the worker's [`Mailbox`].
//! 3. In its next [`turn`](Engine::turn) the engine reads, calls
//!    [`readable`](Handler::readable) and gets an [`Action`].
//! 4. A pure table turns state and action into a new state and an effect.
//! 5. The engine performs the effect: it writes, waits, flushes, or retires the
//!    connection, which is reported [`lost`](Handler::lost) exactly once.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod acceptor;
mod action;
mod address;
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
mod source;
mod state;
mod timers;

pub use acceptor::{Accepted, Acceptor, Admitted, Endpoint, ListenOptions};
pub use action::Action;
pub use address::Address;
pub use counters::{Counter, Counters};
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
