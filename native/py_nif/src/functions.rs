//! Calls from Python to functions that Erlang has registered.
//!
//! A Python thread makes a [`FunctionCall`], sends `{py_function, Call}` to the process that serves
//! functions, and sleeps. That process starts another one for the call, which takes name and arguments
//! with `begin`, runs the function and answers. One lock, held for an assignment only, decides between
//! the answer and the giving up:
//!
//! ```text
//! Queued -> Running -> Answered
//!    |         |          |
//!    +---------+----------+---> Over
//! ```
//!
//! The sleeper leaves to `Over`, with or without an answer; what comes later finds that and is dropped.
//! It is woken by the answer, by an interrupt of its job, or because the serving process has ended.

use std::collections::BTreeSet;
use std::mem::replace;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Instant;

use parking_lot::Mutex;
use reactor_python::value::{ConversionError, Value};
use rustler::{Encoder, Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::beam::post::post;

/// Calls that were sent and that no process has taken yet. Who waits sends nothing more, so only who
/// gives up at once, again and again, comes to this.
const MAX_QUEUED: usize = 10_000;

mod atoms {
    rustler::atoms! { py_function, py_function_over }
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    server: None,
    names: BTreeSet::new(),
});

/// Who serves functions, and what they are called.
struct Registry {
    server: Option<Arc<Server>>,
    names: BTreeSet<String>,
}

struct Server {
    process: LocalPid,
    queued: AtomicUsize,
}

/// From now on `process` serves functions.
pub(crate) fn serve(process: LocalPid) {
    REGISTRY.lock().server = Some(Arc::new(Server {
        process,
        queued: AtomicUsize::new(0),
    }));
}

/// These are the functions there are.
pub(crate) fn set_names(names: BTreeSet<String>) {
    // The former ones are let go after the lock.
    let _former = replace(&mut REGISTRY.lock().names, names);
}

/// The functions there are.
pub(crate) fn names() -> Vec<String> {
    REGISTRY.lock().names.iter().cloned().collect()
}

pub(crate) fn is_name(name: &str) -> bool {
    REGISTRY.lock().names.contains(name)
}

/// What came of a call.
pub(crate) enum Outcome {
    Value(Value),
    /// An Erlang exception.
    Raised {
        kind: String,
        reason: Value,
        text: String,
        stacktrace: String,
    },
    /// There is no such function.
    Unknown(String),
    /// The function does not take so many arguments.
    BadArity(String),
    /// An argument has no counterpart in Erlang.
    BadArgument(ConversionError),
    /// The result has no counterpart in Python.
    BadResult(ConversionError),
    /// The serving process ended.
    Stopped,
}

/// Why a call was not sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Refused {
    NotRunning,
    Overload,
}

/// A call, as Erlang holds it.
pub(crate) struct FunctionCall {
    sleeper: Thread,
    server: LocalPid,
    progress: Mutex<Progress>,
    place: Mutex<Option<Place>>,
}

enum Progress {
    Queued { name: String, args: Vec<Value> },
    Running(LocalPid),
    Answered(Outcome),
    Over,
}

/// One of the places for calls that nobody has taken yet.
struct Place(Arc<Server>);

impl Place {
    fn take(server: Arc<Server>) -> Option<Place> {
        let taken = server.queued.fetch_add(1, Ordering::AcqRel);
        let place = Place(server);
        (taken < MAX_QUEUED).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

#[rustler::resource_impl]
impl Resource for FunctionCall {
    const IMPLEMENTS_DOWN: bool = true;

    /// The serving process is gone: nobody will see to the call any more.
    fn down<'a>(&'a self, _env: Env<'a>, _server: LocalPid, _monitor: Monitor) {
        self.answer(Outcome::Stopped);
    }
}

impl FunctionCall {
    /// A call that nobody waits for.
    pub(crate) fn over(server: LocalPid) -> Self {
        Self {
            sleeper: thread::current(),
            server,
            progress: Mutex::new(Progress::Over),
            place: Mutex::default(),
        }
    }

    /// Name and arguments, for the process that calls this; None if nobody waits for an answer.
    pub(crate) fn begin(&self, process: LocalPid) -> Option<(String, Vec<Value>)> {
        drop(self.place.lock().take());
        let mut progress = self.progress.lock();
        match replace(&mut *progress, Progress::Running(process)) {
            Progress::Queued { name, args } => Some((name, args)),
            other => {
                *progress = other;
                None
            }
        }
    }

    /// Answers, and tells whether anybody still waited for it.
    pub(crate) fn answer(&self, outcome: Outcome) -> bool {
        let former = {
            let mut progress = self.progress.lock();
            match *progress {
                Progress::Queued { .. } | Progress::Running(_) => {
                    replace(&mut *progress, Progress::Answered(outcome))
                }
                Progress::Answered(_) | Progress::Over => return false,
            }
        };
        drop(former);
        self.sleeper.unpark();
        true
    }

    /// Takes the answer, if there is one.
    fn take(&self) -> Option<Outcome> {
        let mut progress = self.progress.lock();
        match replace(&mut *progress, Progress::Over) {
            Progress::Answered(outcome) => Some(outcome),
            other => {
                *progress = other;
                None
            }
        }
    }
}

/// The sleeper's end of a call. When it is dropped without an answer, the process of the call is killed.
pub(crate) struct Waiting(ResourceArc<FunctionCall>);

/// Why a sleep ended.
pub(crate) enum Wake {
    Answer(Outcome),
    Timeout,
    /// Perhaps an interrupt: Python must look before the sleep goes on.
    Other,
}

impl Waiting {
    /// Sends a call. The calling thread, which must not be one of the BEAM's, will sleep for it.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn send(name: String, args: Vec<Value>) -> Result<Waiting, Refused> {
        let server = REGISTRY.lock().server.clone();
        let server = server.ok_or(Refused::NotRunning)?;
        let process = server.process;
        let place = Place::take(server).ok_or(Refused::Overload)?;
        let call = ResourceArc::new(FunctionCall {
            sleeper: thread::current(),
            server: process,
            progress: Mutex::new(Progress::Queued { name, args }),
            place: Mutex::new(Some(place)),
        });
        // Monitored before it is told: either the message arrives or its end is seen. The monitor goes
        // with the resource.
        call.monitor(None, &process).ok_or(Refused::NotRunning)?;
        let sent = call.clone();
        post(process, move |env| (atoms::py_function(), sent).encode(env));
        Ok(Waiting(call))
    }

    /// Sleeps until there is an answer, the deadline is over, or somebody wakes this thread. Call it
    /// without the GIL.
    pub(crate) fn sleep(&self, deadline: Option<Instant>) -> Wake {
        if let Some(outcome) = self.0.take() {
            return Wake::Answer(outcome);
        }
        match deadline {
            None => thread::park(),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Wake::Timeout;
                }
                thread::park_timeout(left);
            }
        }
        self.0.take().map_or(Wake::Other, Wake::Answer)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let former = replace(&mut *self.0.progress.lock(), Progress::Over);
        if let Progress::Running(process) = former {
            post(self.0.server, move |env| {
                (atoms::py_function_over(), process).encode(env)
            });
        }
    }
}
