//! The call threads: where `py:exec`, `py:eval` and `py:call` run.
//!
//! A fixed number of threads takes calls from one bounded queue; when it is full the caller is told
//! at once. Each thread keeps its Python thread state for life, so that `threading.local` and what
//! libraries keep for each thread last from call to call. A call that is given up while it runs is
//! interrupted: the exception `erlang.Interrupted` is raised in its thread, and only while that very
//! call runs there, which the GIL makes certain.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;

use crossbeam_channel::{Receiver, RecvError, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use pyo3::exceptions::PySystemExit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTraceback, PyTuple};
use reactor_python::value::{ConversionError, Types, Value, from_python, map_to_python, to_python};
use reactor_python::{Activity, Description, describe};
use rustler::types::atom::{error, ok};
use rustler::{Encoder, Env, Term};

use crate::beam::term::encode;
use crate::log::{Level, log};
use crate::python::interpreter::{self, STACK_BYTES, on_main_thread};
use crate::python::library;
use crate::ticket::Ticket;

/// Calls that may wait: at a millisecond each the last one waits about a quarter of a second.
const MAX_QUEUED: usize = 1_024;

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Work {
    Exec(String),
    Eval {
        expression: String,
        locals: Vec<(Value, Value)>,
    },
    Call {
        module: String,
        function: String,
        args: Vec<Value>,
        kwargs: Vec<(Value, Value)>,
    },
}

/// Work, and who wants to know. Nobody for a cast: its errors are logged.
pub(crate) struct Call {
    pub(crate) work: Work,
    pub(crate) ticket: Option<Ticket>,
}

/// Why a call was not taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Refused {
    Overload,
    NotRunning,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

struct Pool {
    queue: Queue,
    activities: Vec<Arc<Activity>>,
}

/// Both ends, so that what waits can be answered while every thread is held up in a call.
#[derive(Clone)]
struct Queue {
    sender: Sender<Call>,
    calls: Receiver<Call>,
    stopping: Arc<AtomicBool>,
}

impl Queue {
    fn new() -> Queue {
        let (sender, calls) = bounded(MAX_QUEUED);
        Queue {
            sender,
            calls,
            stopping: Arc::default(),
        }
    }

    /// Takes a call, or gives it back if there is no room.
    fn push(&self, call: Call) -> Option<Call> {
        let pushed = self.sender.try_send(call);
        // Against the one in `stop`: either the call is seen there, or the stop is seen here.
        fence(Ordering::SeqCst);
        if self.stopping.load(Ordering::Acquire) {
            self.drain();
        }
        pushed.err().map(TrySendError::into_inner)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.drain();
    }

    /// Dropping a call answers it.
    fn drain(&self) {
        while let Ok(call) = self.calls.try_recv() {
            drop(call);
        }
    }
}

/// Starts the threads. Python must be running.
///
/// # Errors
/// A sentence for the operator.
pub(crate) fn start(threads: usize) -> Result<(), String> {
    stop();
    let queue = Queue::new();
    let activities: Vec<Arc<Activity>> = (0..threads).map(|_| Arc::default()).collect();
    for (index, activity) in activities.iter().enumerate() {
        let (calls, activity) = (queue.calls.clone(), activity.clone());
        let stopping = queue.stopping.clone();
        thread::Builder::new()
            .name(format!("py call {}", index + 1))
            .stack_size(STACK_BYTES)
            .spawn(move || serve(&calls, activity, &stopping))
            .map_err(|error| format!("cannot make a call thread: {error}"))?;
    }
    *POOL.lock() = Some(Pool { queue, activities });
    Ok(())
}

/// Stops the threads: what waits is answered `{error, stopped}`, what runs is interrupted. A thread
/// whose call does not heed the interrupt ends with it.
pub(crate) fn stop() {
    let pool = POOL.lock().take();
    if let Some(pool) = pool {
        pool.queue.stop();
        for activity in pool.activities {
            // What runs is looked up under the GIL: a thread that has seen us stop begins nothing
            // more, one that has not is in its job by then.
            on_main_thread(Box::new(move |_| {
                if let Some(job) = activity.current_job() {
                    interpreter::interrupt(activity, job);
                }
            }));
        }
    }
}

/// Queues a call.
///
/// # Errors
/// [`Refused`]; the caller's ticket is withdrawn.
pub(crate) fn submit(call: Call) -> Result<(), Refused> {
    let queue = POOL.lock().as_ref().map(|pool| pool.queue.clone());
    let (call, refused) = match queue {
        None => (call, Refused::NotRunning),
        Some(queue) => match queue.push(call) {
            None => return Ok(()),
            Some(call) => (call, Refused::Overload),
        },
    };
    if let Some(ticket) = call.ticket {
        ticket.withdraw();
    }
    Err(refused)
}

fn serve(calls: &Receiver<Call>, activity: Arc<Activity>, stopping: &AtomicBool) {
    Python::attach(|py| {
        let runner = match Runner::new(py, activity) {
            Ok(runner) => runner,
            Err(error) => {
                let text = format!("a call thread cannot start: {error}");
                return log(Level::Critical, text, Vec::new());
            }
        };
        while let Ok(call) = py.detach(|| next(calls)) {
            // When stopping, dropping the call answers it.
            if !stopping.load(Ordering::Acquire) {
                runner.run(py, call);
            }
        }
    });
}

/// Waits for a call. The last one may have loaded libraries; the loader's lock, which the guard takes,
/// is never waited for under the GIL.
fn next(calls: &Receiver<Call>) -> Result<Call, RecvError> {
    library::guard_exit();
    calls.recv()
}

/// One thread's Python side.
struct Runner {
    activity: Arc<Activity>,
    types: Types,
    /// The module `erlang._calls`.
    helpers: Py<PyModule>,
}

/// What came of a call.
enum Outcome {
    Done,
    Value(Value),
    Failed(Failure),
}

/// An exception, as `{error, {Class, Message, Traceback}}` tells it.
pub(crate) struct Failure(Description);

impl Runner {
    fn new(py: Python<'_>, activity: Arc<Activity>) -> PyResult<Runner> {
        activity.bind_to_this_thread(py)?;
        Ok(Runner {
            activity,
            types: Types::load(py)?,
            helpers: py.import("erlang._calls")?.unbind(),
        })
    }

    fn run(&self, py: Python<'_>, call: Call) {
        if let Some(ticket) = &call.ticket {
            let (activity, job) = (self.activity.clone(), self.activity.next_job());
            if !ticket.begin(move || interpreter::interrupt(activity.clone(), job)) {
                return;
            }
        }
        // An exception is described within the job: its `str()` may be the user's endless loop.
        let job = || {
            let result = self.perform(py, &call.work);
            if library::is_forked_child() {
                self.leave_child(py, result.err());
            }
            self.outcome(py, &call.work, result)
        };
        let caught = || catch_unwind(AssertUnwindSafe(job));
        match self.activity.watch(py, None, caught).0 {
            Ok(outcome) => report(call.ticket, outcome),
            Err(_) => {
                let text = format!("a panic in {:?}", call.work);
                log(Level::Error, text, Vec::new());
            }
        }
    }

    fn perform<'py>(&self, py: Python<'py>, work: &Work) -> PyResult<Bound<'py, PyAny>> {
        let helpers = self.helpers.bind(py);
        match work {
            Work::Exec(code) => helpers.call_method1("execute", (code,)),
            Work::Eval { expression, locals } => {
                let locals = map_to_python(py, locals, &self.types)?;
                helpers.call_method1("evaluate", (expression, locals))
            }
            Work::Call {
                module,
                function,
                args,
                kwargs,
            } => {
                let kwargs: Bound<'_, PyDict> = map_to_python(py, kwargs, &self.types)?;
                let args: Vec<Bound<'_, PyAny>> = args
                    .iter()
                    .map(|arg| to_python(py, arg, &self.types))
                    .collect::<PyResult<_>>()?;
                let args = PyTuple::new(py, args)?;
                helpers.call_method1("call", (module, function, args, kwargs))
            }
        }
    }

    fn outcome(&self, py: Python<'_>, work: &Work, result: PyResult<Bound<'_, PyAny>>) -> Outcome {
        match (work, result) {
            (_, Err(error)) => Outcome::Failed(failure(py, &error)),
            (Work::Exec(_), Ok(_)) => Outcome::Done,
            (Work::Eval { .. } | Work::Call { .. }, Ok(object)) => {
                match from_python(&object, &self.types) {
                    Ok(value) => Outcome::Value(value),
                    Err(error) => Outcome::Failed(error.into()),
                }
            }
        }
    }

    /// The user's code forked, and the child came back here. It must not serve the parent's calls.
    fn leave_child(&self, py: Python<'_>, error: Option<PyErr>) -> ! {
        let status = match error {
            None => 0,
            Some(error) if error.is_instance_of::<PySystemExit>(py) => exit_code(py, &error),
            Some(error) => {
                eprintln!("{}", failure(py, &error).0.traceback);
                1
            }
        };
        let _ = self.helpers.bind(py).call_method0("flush");
        library::leave(status)
    }
}

fn failure(py: Python<'_>, error: &PyErr) -> Failure {
    // The outermost frame is that of `erlang._calls`, which nobody asked about.
    let trace = error.traceback(py);
    let inner = trace.and_then(|trace| trace.getattr("tb_next").ok());
    let inner = inner.and_then(|inner| inner.cast_into::<PyTraceback>().ok());
    error.set_traceback(py, inner);
    Failure(describe(py, error))
}

/// As Python's own: no code is success, a number is itself, anything else is failure.
fn exit_code(py: Python<'_>, error: &PyErr) -> i32 {
    match error.value(py).getattr("code") {
        Ok(code) if code.is_none() => 0,
        Ok(code) => code.extract().unwrap_or(1),
        Err(_) => 1,
    }
}

fn report(ticket: Option<Ticket>, outcome: Outcome) {
    match (ticket, outcome) {
        (Some(ticket), outcome) => ticket.answer(move |env| outcome.encode(env)),
        (None, Outcome::Failed(failure)) => log(
            Level::Error,
            format!("a cast failed: {}: {}", failure.0.class, failure.0.message),
            vec![("traceback", failure.0.traceback)],
        ),
        (None, Outcome::Done | Outcome::Value(_)) => {}
    }
}

impl From<ConversionError> for Failure {
    fn from(error: ConversionError) -> Failure {
        Failure(Description {
            class: error.class().to_owned(),
            message: error.to_string(),
            traceback: String::new(),
        })
    }
}

impl Encoder for Outcome {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Outcome::Done => ok().encode(env),
            Outcome::Failed(failure) => failure.encode(env),
            Outcome::Value(value) => match encode(env, value) {
                Ok(term) => (ok(), term).encode(env),
                Err(error) => Failure::from(error).encode(env),
            },
        }
    }
}

impl Encoder for Failure {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let Description {
            class,
            message,
            traceback,
        } = &self.0;
        (error(), (class, message, traceback)).encode(env)
    }
}
