//! A context: one worker thread, its engine, and the resource by which Erlang knows it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use reactor::{AdoptError, Door, Engine, Groundwork, Mailbox, SendError, Settings, Turn};
use reactor_python::value::Value;
use reactor_python::{
    Activity, Look, Opening, PythonHandler, Refusal, Reply, Report, Surroundings, adopt, describe,
};
use rustler::types::atom::{error, ok};
use rustler::{Encoder, Env, LocalPid, Monitor, Resource, ResourceArc, Term};

use crate::beam::park::BeamDemultiplexer;
use crate::beam::post::post;
use crate::log::{Level, log};
use crate::python::interpreter;
use crate::python::library;
use crate::sentry;
use crate::ticket::Ticket;

mod atoms {
    rustler::atoms! {
        py_worker, started, stopped, failed, undefined, badf, unsupported_fd, already_served, overload,
        no_context, no_protocol_factory, protocol, bad_info, system
    }
}

/// What Erlang holds of a context.
pub(crate) struct Context {
    door: Door<Opening>,
    activity: Arc<Activity>,
    running: Arc<AtomicBool>,
}

#[rustler::resource_impl]
impl Resource for Context {
    const IMPLEMENTS_DOWN: bool = true;

    /// The context process is gone: nobody will forward readiness any more.
    fn down<'a>(&'a self, _env: Env<'a>, _process: LocalPid, _monitor: Monitor) {
        self.stop();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.mailbox().stop();
    }
}

impl Context {
    /// Starts the worker of the calling process, which gets `{py_worker, started}` or
    /// `{py_worker, {failed, Text}}`, and at the end `{py_worker, stopped}` or, should the
    /// worker fail, another `{py_worker, {failed, Text}}`.
    pub(crate) fn start(env: Env<'_>, settings: Settings) -> Result<ResourceArc<Self>, String> {
        if !interpreter::is_running() {
            return Err("Python is not running: start the application py_reactor".to_owned());
        }
        let process = env.pid();
        let (groundwork, door) = Groundwork::lay(settings).map_err(|e| e.to_string())?;
        let activity = Arc::new(Activity::default());
        let running = Arc::new(AtomicBool::new(true));
        let context = ResourceArc::new(Self {
            door,
            activity: Arc::clone(&activity),
            running: Arc::clone(&running),
        });
        if env.monitor(&context, &process).is_none() {
            return Err("the context process is gone".to_owned());
        }
        let worker = move || {
            let life = || Python::attach(|py| serve(py, groundwork, activity, process));
            let outcome = catch_unwind(AssertUnwindSafe(life))
                .unwrap_or_else(|_| Err("the worker panicked".to_owned()));
            running.store(false, Ordering::Release);
            post(process, move |env| match outcome {
                Ok(()) => (atoms::py_worker(), atoms::stopped()).encode(env),
                Err(text) => (atoms::py_worker(), (atoms::failed(), text)).encode(env),
            });
        };
        thread::Builder::new()
            .name("py worker".to_owned())
            .stack_size(interpreter::STACK_BYTES)
            .spawn(worker)
            .map_err(|e| e.to_string())?;
        sentry::look_after(process, &context.activity);
        Ok(context)
    }

    /// Takes a descriptor: from here on it is ours, whatever comes of it. Unless it is
    /// refused at once, the ticket answers `ok` or `{error, Reason}`.
    pub(crate) fn handoff(
        &self,
        number: i32,
        info: Value,
        nodelay: bool,
        ticket: Ticket,
    ) -> Result<(), AdoptError> {
        let descriptor = match adopt(number) {
            Ok(descriptor) => descriptor,
            Err(refused) => {
                ticket.withdraw();
                return Err(refused);
            }
        };
        // A socket that refuses the option was reset already, which its first read will tell.
        if nodelay && let Err(errno) = descriptor.set_nodelay() {
            log(
                Level::Debug,
                format!("no TCP_NODELAY on {number}: {errno}"),
                Vec::new(),
            );
        }
        let reply: Reply = Box::new(|result| ticket.answer(move |env| encode_reply(env, result)));
        let opening = Opening {
            info,
            recipe: None,
            reply: Some(reply),
        };
        let sent = self.door.hand_in(descriptor, opening);
        if let Err((
            SendError::Full,
            Opening {
                reply: Some(reply), ..
            },
        )) = sent
        {
            reply(Err(Refusal::Overload));
        }
        // A context that has ended drops the opening, and the ticket answers for itself.
        Ok(())
    }

    /// Closes every connection and ends the worker.
    pub(crate) fn stop(&self) {
        self.mailbox().stop();
    }

    /// Raises `erlang.Interrupted` in the callback that is running, if there is one.
    pub(crate) fn interrupt(&self) {
        if let Some(callback) = self.activity.current_job() {
            interpreter::interrupt(Arc::clone(&self.activity), callback);
        }
    }

    /// Has Python's main thread look at a job as soon as it can have the GIL. Gives what it saw, and
    /// how long it waited, to `tell`, without the GIL; None if the job has ended.
    pub(crate) fn look(
        &self,
        job: u64,
        tell: impl FnOnce(Result<Option<Look>, String>, Duration) + Send + 'static,
    ) {
        let activity = Arc::clone(&self.activity);
        let asked = Instant::now();
        interpreter::on_main_thread(Box::new(move |py| {
            let waited = asked.elapsed();
            let seen = activity.look(py, job);
            let seen = seen.map_err(|error| describe(py, &error).traceback);
            py.detach(|| tell(seen, waited));
        }));
    }

    /// Whether the worker has not ended yet.
    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Where connections are handed in.
    pub(crate) const fn door(&self) -> &Door<Opening> {
        &self.door
    }

    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        self.door.mailbox()
    }
}

/// Runs on the worker until the context stops.
fn serve(
    py: Python<'_>,
    groundwork: Groundwork<Opening>,
    activity: Arc<Activity>,
    process: LocalPid,
) -> Result<(), String> {
    let demultiplexer = BeamDemultiplexer::new(process, atoms::undefined());
    let mut engine = Engine::on(groundwork, demultiplexer);
    let counters = Arc::clone(engine.mailbox().counters());
    let mut handler = PythonHandler::new(py, counters, activity, Worker)
        .map_err(|error| describe(py, &error).traceback)?;
    post(process, |env| {
        (atoms::py_worker(), atoms::started()).encode(env)
    });
    loop {
        match engine.turn(&mut handler, None) {
            Ok(Turn::Again) => {}
            Ok(Turn::Stopped) => return Ok(()),
            Err(error) => return Err(format!("the poller failed: {error}")),
        }
    }
}

/// What a worker is to its handler.
struct Worker;

impl Surroundings for Worker {
    fn report(&self, report: Report) {
        let Report {
            callback,
            protocol,
            fd,
            peer,
            listener,
            failure,
        } = report;
        let of = if peer.is_empty() { "" } else { " of " };
        let (class, message) = (&failure.class, &failure.message);
        let text = format!("{protocol}.{callback}{of}{peer}: {class}: {message}");
        let mut metadata = vec![
            ("callback", callback.to_owned()),
            ("protocol", protocol),
            ("fd", fd.to_string()),
            ("peer", peer),
            ("traceback", failure.traceback),
        ];
        if !listener.is_empty() {
            metadata.push(("listener", listener));
        }
        log(Level::Error, text, metadata);
    }

    /// A child has the parent's descriptors and would serve its connections a second time.
    fn callback_returned(&self) {
        if library::is_forked_child() {
            library::leave(0);
        }
    }

    fn resting(&self) {
        library::guard_exit();
    }
}

/// `badf`, `{unsupported_fd, Kind}`, `already_served` or `{system, Text}`.
pub(crate) fn adopt_error(env: Env<'_>, refused: AdoptError) -> Term<'_> {
    match refused {
        AdoptError::BadDescriptor => (error(), atoms::badf()).encode(env),
        AdoptError::Unsupported(kind) => {
            let kind = rustler::Atom::from_str(env, kind).unwrap_or(atoms::undefined());
            (error(), (atoms::unsupported_fd(), kind)).encode(env)
        }
        AdoptError::System(errno) => (error(), (atoms::system(), errno.desc())).encode(env),
        AdoptError::AlreadyServed => (error(), atoms::already_served()).encode(env),
    }
}

/// `ok` or `{error, Reason}`.
pub(crate) fn encode_reply(env: Env<'_>, result: Result<(), Refusal>) -> Term<'_> {
    match result {
        Ok(()) => ok().encode(env),
        Err(Refusal::NoProtocolFactory) => (error(), atoms::no_protocol_factory()).encode(env),
        Err(Refusal::Overload) => (error(), atoms::overload()).encode(env),
        Err(Refusal::Protocol(traceback)) => (error(), (atoms::protocol(), traceback)).encode(env),
        Err(Refusal::BadInfo(text)) => (error(), (atoms::bad_info(), text)).encode(env),
    }
}
