//! A listener: where its connections come from, what they share, and which contexts serve them.
//!
//! Three resources. A [`Recipe`] says how protocols are made, and has contexts forget it in the end.
//! A [`Listener`] owns the listening socket; when the process that owns the listener ends, however
//! it ends, the socket is closed and the connections end. A [`Waiting`] is one acceptor process's
//! duplicate of the socket, waiting in `enif_select`.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;
use reactor::{
    Accepted, Acceptor, Address, Admission, Counters, Descriptor, Endpoint, Interest,
    ListenOptions, Service, Stage,
};
use reactor_python::value::Value;
use reactor_python::{Errand, Opening};
use rustler::{Encoder, Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::beam::post::post;
use crate::beam::select::{Kind, Seat, Watched};
use crate::context::{Context, encode_reply};
use crate::loan::{BUSY_MS, Loan, has_time};
use crate::ticket::Ticket;

mod atoms {
    rustler::atoms! { py_place, free, undefined }
}

/// How the protocols of a listener are made, and who knows it.
pub(crate) struct Recipe {
    recipe: Arc<reactor_python::Recipe>,
    /// The contexts that were given the recipe, or a connection of it.
    contexts: Mutex<Vec<ResourceArc<Context>>>,
}

#[rustler::resource_impl(name = "py_reactor_recipe")]
impl Resource for Recipe {}

impl Recipe {
    pub(crate) fn new(
        protocol: Option<reactor_python::Named>,
        info: Vec<(Value, Value)>,
    ) -> ResourceArc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        ResourceArc::new(Self {
            recipe: Arc::new(reactor_python::Recipe {
                id: NEXT.fetch_add(1, Ordering::Relaxed),
                protocol,
                info,
            }),
            contexts: Mutex::default(),
        })
    }

    /// Has a context import it; the ticket answers `ok` or `{error, Reason}`.
    pub(crate) fn prepare(&self, context: &ResourceArc<Context>, ticket: Ticket) {
        self.is_known_to(std::slice::from_ref(context));
        let errand = Errand::Prepare {
            recipe: Arc::clone(&self.recipe),
            reply: Box::new(|result| ticket.answer(move |env| encode_reply(env, result))),
        };
        // What a context does not take is dropped, and the ticket answers for itself.
        let _ = context.mailbox().errand(Box::new(errand));
    }

    /// Takes contexts onto the list, and those that have ended off it.
    fn is_known_to(&self, contexts: &[ResourceArc<Context>]) {
        let mut known = self.contexts.lock();
        for context in contexts {
            if !known.iter().any(|old| std::ptr::eq(&**old, &**context)) {
                known.retain(|old| old.is_running());
                known.push(context.clone());
            }
        }
    }

    fn contexts(&self) -> Vec<ResourceArc<Context>> {
        self.contexts.lock().clone()
    }
}

impl Drop for Recipe {
    fn drop(&mut self) {
        let id = self.recipe.id;
        for context in self.contexts.get_mut().drain(..) {
            // A context that has no time to read it keeps the class of the protocol until it ends.
            let _ = context.mailbox().errand(Box::new(Errand::Forget { id }));
        }
    }
}

/// What Erlang holds of a listener.
pub(crate) struct Listener {
    service: Arc<Service>,
    recipe: ResourceArc<Recipe>,
    options: ListenOptions,
    /// Where it listens: with the port that the kernel chose, once it did.
    endpoint: Mutex<Endpoint>,
    /// `None` while it is closed. The lock is never held across a call.
    socket: Mutex<Option<Arc<Acceptor>>>,
    /// The worker that accepts by itself now.
    loan: Mutex<Option<Arc<Loan>>>,
    /// Whose turn it is among the contexts.
    turn: AtomicUsize,
}

#[rustler::resource_impl(name = "py_reactor_listener")]
impl Resource for Listener {
    const IMPLEMENTS_DOWN: bool = true;

    /// The owner has ended: if it could not end the listener itself, this does.
    fn down<'a>(&'a self, _env: Env<'a>, _owner: LocalPid, _monitor: Monitor) {
        self.shut();
        self.set_stage(Stage::Ending);
    }
}

/// What came of accepting a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Nobody waits any more.
    Empty,
    /// There may be more.
    More,
    /// There are as many connections as there may be.
    Full,
    /// Something is missing that nobody will announce.
    Pause(Missing),
    /// A worker accepts by itself.
    Lent,
    /// The socket is closed.
    Closed,
}

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The kernel says so.
    Errno(Errno),
    /// None of the contexts is there.
    Context,
    /// The contexts that are there are full.
    Room,
}

/// Connections of one batch, and its longest time: whichever ends first, the call stays short
/// enough for a scheduler.
const BATCH: usize = 64;
const BATCH_TIME: Duration = Duration::from_micros(800);

impl Listener {
    pub(crate) fn new(
        service: Arc<Service>,
        recipe: ResourceArc<Recipe>,
        endpoint: Endpoint,
        options: ListenOptions,
    ) -> Self {
        Self {
            service,
            recipe,
            options,
            endpoint: Mutex::new(endpoint),
            socket: Mutex::default(),
            loan: Mutex::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Opens the socket, unless it is open.
    pub(crate) fn open(&self) -> std::io::Result<()> {
        if self.is_open() {
            return Ok(());
        }
        let endpoint = self.endpoint();
        let acceptor = Acceptor::open(&endpoint, &self.options)?;
        if let Address::Inet(address) = acceptor.address()? {
            *self.endpoint.lock() = Endpoint::Tcp(address);
        }
        *self.socket.lock() = Some(Arc::new(acceptor));
        Ok(())
    }

    /// Accepts what waits in the backlog, as far as there are places, and closes the socket.
    ///
    /// Who waits there has connected, and may have sent a request. The two steps follow each
    /// other at once: a client that connects between them is reset, and the kernel offers no
    /// way to turn it away before. What is accepted is no more than was there: in a flood it
    /// would never end.
    pub(crate) fn close(&self, contexts: &[ResourceArc<Context>]) {
        let socket = self.socket.lock().take();
        let Some(socket) = socket else { return };
        let batches = self.options.backlog as usize / BATCH + 1;
        let _ = (0..batches).all(|_| self.accept_from(&socket, contexts).0 == Batch::More);
        socket.shut();
    }

    /// Closes the socket: no acceptor gets anything from it any more.
    fn shut(&self) {
        let socket = self.socket.lock().take();
        if let Some(socket) = socket {
            socket.shut();
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.socket.lock().is_some()
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint.lock().clone()
    }

    pub(crate) const fn service(&self) -> &Arc<Service> {
        &self.service
    }

    pub(crate) fn counters(&self) -> Counters {
        self.service.counters()
    }

    /// Has the connections hear of another stage.
    pub(crate) fn set_stage(&self, stage: Stage) {
        self.service.set_stage(stage);
        for context in self.recipe.contexts() {
            context.mailbox().review();
        }
    }

    /// Accepts a batch, and tells of how many.
    fn accept_from(&self, socket: &Acceptor, contexts: &[ResourceArc<Context>]) -> (Batch, usize) {
        self.recipe.is_known_to(contexts);
        let began = Instant::now();
        for accepted in 0..BATCH {
            if let Some(batch) = self.accept_one(socket, contexts) {
                return (batch, accepted);
            }
            if began.elapsed() > BATCH_TIME {
                return (Batch::More, accepted + 1);
            }
        }
        (Batch::More, BATCH)
    }

    /// Accepts a connection, or tells why not. It has its place before it is accepted, so that
    /// there are never too many; and nobody takes a place, nor looks for a descriptor, while no
    /// client waits.
    fn accept_one(&self, socket: &Acceptor, contexts: &[ResourceArc<Context>]) -> Option<Batch> {
        if !socket.is_ready() {
            return Some(Batch::Empty);
        }
        let order = match self.order(contexts) {
            Ok(order) => order,
            Err(missing) => return Some(Batch::Pause(missing)),
        };
        let Some(admission) = self.service.admit() else {
            return Some(Batch::Full);
        };
        match socket.accept() {
            Accepted::Connection(fd, peer) => {
                match Descriptor::accepted(fd, socket.kind(), peer) {
                    Ok(descriptor) => self.hand_in(&descriptor, admission, order),
                    // The kernel does not know what it has just made: that it closed it
                    // again is all there is to say.
                    Err(_) => drop(admission),
                }
            }
            Accepted::Empty => return Some(Batch::Empty),
            Accepted::Exhausted(errno) => return Some(Batch::Pause(Missing::Errno(errno))),
            Accepted::Failed(_) => return Some(Batch::Closed),
        }
        None
    }

    /// The contexts in the order in which they are to be tried: in turn, but first those that have
    /// time.
    fn order<'a>(
        &self,
        contexts: &'a [ResourceArc<Context>],
    ) -> Result<impl Iterator<Item = &'a ResourceArc<Context>> + use<'a>, Missing> {
        let count = contexts.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = move || (0..count).map(move |n| &contexts[first.wrapping_add(n) % count]);
        if !in_turn().any(|context| context.mailbox().has_room()) {
            return Err(if in_turn().any(|context| context.is_running()) {
                Missing::Room
            } else {
                Missing::Context
            });
        }
        let held_up = |context: &&ResourceArc<Context>| context.mailbox().busy_ms() > BUSY_MS;
        let in_time = in_turn().filter(move |context| !held_up(context));
        Ok(in_time.chain(in_turn()))
    }

    /// What comes with each connection.
    pub(crate) fn opening(&self) -> Opening {
        Opening {
            info: Value::Map(Vec::new()),
            recipe: Some(Arc::clone(&self.recipe.recipe)),
            reply: None,
        }
    }

    /// The socket is not lent any more.
    pub(crate) fn has_back(&self, loan: &Arc<Loan>) {
        let mut present = self.loan.lock();
        if present.as_ref().is_some_and(|it| Arc::ptr_eq(it, loan)) {
            *present = None;
        }
    }

    /// Gives a connection to the first context that takes it. If all of them have ended or become
    /// full meanwhile, it is closed.
    fn hand_in<'a>(
        &self,
        descriptor: &Arc<Descriptor>,
        admission: Admission,
        order: impl Iterator<Item = &'a ResourceArc<Context>>,
    ) {
        let mut refused = (self.opening(), admission);
        for context in order {
            let (opening, admission) = refused;
            match context
                .door()
                .admit(Arc::clone(descriptor), opening, admission)
            {
                Ok(()) => return,
                Err((_, opening, admission)) => refused = (opening, admission),
            }
        }
        self.service.refused();
    }
}

/// An acceptor process's duplicate of the socket.
pub(crate) struct Waiting {
    listener: ResourceArc<Listener>,
    process: LocalPid,
    /// Taken out when the selection is over. The lock is never held across a call.
    socket: Mutex<Option<Arc<Acceptor>>>,
}

impl Watched for Waiting {
    const NAME: &'static CStr = c"py_reactor_acceptor";

    fn kind() -> &'static Kind {
        static KIND: Kind = Kind::new();
        &KIND
    }

    /// Closes the duplicate, unless a call is just using it: then that does.
    fn stopped(&self) {
        let socket = self.socket.lock().take();
        drop(socket);
    }

    fn orphaned(seat: &Seat<Self>) {
        Self::close(seat);
    }
}

impl Waiting {
    /// A duplicate for the calling process; `None` if the listener is closed, or the process
    /// about to end.
    pub(crate) fn open(
        env: Env<'_>,
        listener: ResourceArc<Listener>,
    ) -> std::io::Result<Option<Seat<Self>>> {
        let Some(socket) = listener.socket.lock().clone() else {
            return Ok(None);
        };
        let process = env.pid();
        let seat = Seat::new(Self {
            listener,
            process,
            socket: Mutex::new(Some(Arc::new(socket.duplicate()?))),
        })?;
        // Of a process that is dying nobody would hear.
        Ok(seat.monitor(env, process).then_some(seat))
    }

    /// Accepts a batch. After [`Batch::Empty`] the process is told when somebody comes, after
    /// [`Batch::Full`] when there may be a place.
    pub(crate) fn accept(seat: &Seat<Self>, contexts: &[ResourceArc<Context>]) -> Batch {
        let Some(socket) = seat.socket() else {
            return Batch::Closed;
        };
        if Self::is_lent(seat) {
            return Batch::Lent;
        }
        let (batch, accepted) = seat.listener.accept_from(&socket, contexts);
        match batch {
            // Clients come, and nothing is missing. Only then: a worker gives back what it cannot
            // accept, and would get it again at once.
            Batch::Empty | Batch::More if accepted > 0 && Self::lend(seat, &socket, contexts) => {
                Batch::Lent
            }
            Batch::Empty => {
                let number = socket.as_fd().as_raw_fd();
                match seat.arm(number, Interest::Read, seat.process, atoms::undefined()) {
                    Ok(()) => Batch::Empty,
                    // As a rule there is no memory.
                    Err(_) => Batch::Pause(Missing::Errno(Errno::ENOMEM)),
                }
            }
            Batch::Full => {
                let process = seat.process;
                let told = move || {
                    post(process, |env| {
                        (atoms::py_place(), atoms::free()).encode(env)
                    })
                };
                seat.listener.service.when_free(Box::new(told));
                Batch::Full
            }
            Batch::Closed => {
                drop(socket);
                Self::close(seat);
                Batch::Closed
            }
            Batch::More | Batch::Lent | Batch::Pause(_) => batch,
        }
    }

    /// Whether a worker accepts by itself: then the process is told when that is over. A loan to
    /// one that has no time is ended.
    fn is_lent(seat: &Seat<Self>) -> bool {
        let mut present = seat.listener.loan.lock();
        if let Some(loan) = present.take_if(|loan| !loan.stands()) {
            drop(present);
            loan.revoke();
            return false;
        }
        match &*present {
            Some(loan) => {
                loan.join(seat);
                true
            }
            None => false,
        }
    }

    /// Has the worker of the only context accept by itself, if it has time. False if this
    /// process is to do it.
    fn lend(seat: &Seat<Self>, socket: &Arc<Acceptor>, contexts: &[ResourceArc<Context>]) -> bool {
        let [context] = contexts else {
            return false;
        };
        if !has_time(context) {
            return false;
        }
        let mut present = seat.listener.loan.lock();
        if let Some(loan) = &*present {
            // Another acceptor was faster.
            loan.join(seat);
            return true;
        }
        let loan = Loan::new(seat, context);
        *present = Some(Arc::clone(&loan));
        drop(present);
        loan.begin(seat, Arc::clone(socket));
        true
    }

    /// Whether it accepts nobody any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.socket.lock().is_none()
    }

    pub(crate) fn listener(&self) -> &Listener {
        &self.listener
    }

    pub(crate) const fn process(&self) -> LocalPid {
        self.process
    }

    /// Waits no more and closes the duplicate.
    pub(crate) fn close(seat: &Seat<Self>) {
        if let Some(socket) = seat.socket() {
            let number = socket.as_fd().as_raw_fd();
            drop(socket);
            seat.stop(number, seat.process, atoms::undefined());
        }
    }

    fn socket(&self) -> Option<Arc<Acceptor>> {
        self.socket.lock().clone()
    }
}
