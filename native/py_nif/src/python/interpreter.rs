//! The main interpreter: its start, its main thread, the jobs done there.
//!
//! Python starts on a thread of its own and never ends. That thread, "python main", runs no code of
//! the user: `signal.signal` works on Python's main thread only, and the signals belong to the VM. It
//! is the janitor instead: it does small jobs for threads that may not take the GIL themselves.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;
use reactor_python::Activity;

use super::program::{self, BUILD_VERSION, Program};
use super::{library, module};
use crate::log::{Level, log};

pub(crate) use super::library::{guard_exit, is_forked_child};

/// The stack of every thread that runs Python. On 8 MiB deep recursion is a RecursionError; on a
/// scheduler's stack it is a segmentation fault.
pub(crate) const STACK_BYTES: usize = 8 * 1024 * 1024;

/// What the operator may choose.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The python program or the folder of a virtual environment; None for the build's own.
    pub(crate) program: Option<String>,
    /// The folder of the `erlang` package: first on sys.path.
    pub(crate) package_path: String,
    /// More folders, after it.
    pub(crate) python_path: Vec<String>,
    /// The threshold of Python's root logger, as a level name of Python.
    pub(crate) log_level: String,
}

type Job = Box<dyn for<'py> FnOnce(Python<'py>) + Send>;

/// The running interpreter.
struct Main {
    /// The choice it was started with.
    wanted: Option<String>,
    jobs: Sender<Job>,
}

static MAIN: OnceLock<Main> = OnceLock::new();

/// Somebody is starting Python. There is no way to start it twice.
static STARTING: AtomicBool = AtomicBool::new(false);

/// Starts Python, or sets up a running one again. Waits for it: call it on a dirty scheduler.
///
/// # Errors
/// A sentence for the operator.
pub(crate) fn start(settings: Settings) -> Result<(), String> {
    match MAIN.get() {
        None => start_main_thread(&settings)?,
        Some(main) if main.wanted == settings.program => {}
        Some(main) => {
            return Err(format!(
                "Python runs already, as {}; another program needs a restart of the node",
                main.wanted.as_deref().unwrap_or("the program of the build")
            ));
        }
    }
    let (done, result) = mpsc::channel();
    on_main_thread(Box::new(move |py| {
        // The receiver waits below for as long as this takes.
        let _ = done.send(set_up(py, &settings).map_err(|error| describe(py, &error)));
    }));
    result
        .recv()
        .unwrap_or_else(|_| Err("the Python main thread has ended".to_owned()))
}

/// Whether Python was started, which it stays.
pub(crate) fn is_running() -> bool {
    MAIN.get().is_some()
}

/// Has a small job done on Python's main thread, holding the GIL. Dropped if Python is not running.
pub(crate) fn on_main_thread(job: Job) {
    if let Some(main) = MAIN.get() {
        // An error would mean that the thread has ended, and it never does.
        let _ = main.jobs.send(job);
    }
}

fn start_main_thread(settings: &Settings) -> Result<(), String> {
    if STARTING.swap(true, Ordering::AcqRel) {
        return Err("Python is being started already".to_owned());
    }
    let outcome = make_main_thread(settings);
    STARTING.store(false, Ordering::Release);
    outcome
}

fn make_main_thread(settings: &Settings) -> Result<(), String> {
    let (jobs, queue) = unbounded();
    let (started, result) = mpsc::channel();
    let wanted = settings.program.clone();
    thread::Builder::new()
        .name("python main".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let outcome = initialize(wanted.as_deref());
            let failed = outcome.is_err();
            // The receiver waits below.
            let _ = started.send(outcome);
            if !failed {
                do_jobs(&queue);
            }
        })
        .map_err(|error| format!("cannot make the Python main thread: {error}"))?;
    result
        .recv()
        .unwrap_or_else(|_| Err("the Python main thread has ended".to_owned()))?;
    let wanted = settings.program.clone();
    MAIN.set(Main { wanted, jobs })
        .map_err(|_| "Python was started twice".to_owned())
}

fn do_jobs(queue: &Receiver<Job>) {
    for job in queue {
        let outcome = catch_unwind(AssertUnwindSafe(|| Python::attach(job)));
        if outcome.is_err() {
            log(
                Level::Error,
                "a job on the Python main thread panicked".to_owned(),
                Vec::new(),
            );
        }
    }
}

/// Starts the interpreter on this thread and lets go of the GIL.
fn initialize(wanted: Option<&str>) -> Result<(), String> {
    library::promote_libpython()?;
    let version = loaded_version();
    check_version(&version)?;
    let program = program::choose(wanted)?;
    warn_of_another_build(&program, &version);
    initialize_as(&program.path)?;
    library::watch_forks()?;
    library::guard_exit();
    // SAFETY: this thread holds the GIL since the start above. Its thread state stays attached to
    // it by Python's own thread-local, where `Python::attach` finds it again.
    unsafe { ffi::PyEval_SaveThread() };
    Ok(())
}

/// The `sys.version` of the libpython that the loader has found.
fn loaded_version() -> String {
    // SAFETY: Py_GetVersion may be called before the start; it returns a static string.
    let version = unsafe { CStr::from_ptr(ffi::Py_GetVersion()) }.to_string_lossy();
    version.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The loader may have found another libpython than the one of the build.
fn check_version(version: &str) -> Result<(), String> {
    let fits = version
        .strip_prefix(BUILD_VERSION)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    if fits {
        Ok(())
    } else {
        Err(format!(
            "the loaded libpython is {version}, but py_reactor was built against {BUILD_VERSION}"
        ))
    }
}

/// Two builds of one version mostly agree, but one may have as a file what the other has built in.
fn warn_of_another_build(program: &Program, version: &str) {
    if program.build != version {
        let text = format!(
            "{} is Python {}, the loaded libpython is {version}: some modules may not load",
            program.path, program.build
        );
        log(Level::Warning, text, Vec::new());
    }
}

fn initialize_as(program: &str) -> Result<(), String> {
    let program =
        CString::new(program).map_err(|_| "the python program's name has a NUL".to_owned())?;
    let mut config = std::mem::MaybeUninit::<ffi::PyConfig>::zeroed();
    // SAFETY: PyConfig_InitPythonConfig fills every field of the memory that it is given.
    let config = unsafe {
        ffi::PyConfig_InitPythonConfig(config.as_mut_ptr());
        config.assume_init_mut()
    };
    config.install_signal_handlers = 0; // The signals belong to the VM,
    config.parse_argv = 0; // and so does the command line,
    config.configure_c_stdio = 0; // and the buffering of its stdio.
    // SAFETY: `config` was initialised above, `program` outlives the call, and this is the one
    // thread that starts Python, before anything else calls it.
    let status = unsafe {
        let mut status =
            ffi::PyConfig_SetBytesString(config, &raw mut config.program_name, program.as_ptr());
        if ffi::PyStatus_Exception(status) == 0 {
            status = ffi::Py_InitializeFromConfig(config);
        }
        ffi::PyConfig_Clear(config);
        status
    };
    // SAFETY: only looks at the status.
    if unsafe { ffi::PyStatus_Exception(status) } == 0 {
        return Ok(());
    }
    Err(format!(
        "Python does not start: {}",
        status_text(status.err_msg)
    ))
}

fn status_text(message: *const c_char) -> String {
    if message.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: not null, and the messages of a PyStatus are static strings.
    unsafe { CStr::from_ptr(message) }
        .to_string_lossy()
        .into_owned()
}

/// Everything that a start of the application asks of a running Python; may be done many times.
fn set_up(py: Python<'_>, settings: &Settings) -> PyResult<()> {
    module::install(py)?;
    let path = py.import("sys")?.getattr("path")?.cast_into::<PyList>()?;
    if !path.contains(&settings.package_path)? {
        path.insert(0, &settings.package_path)?;
    }
    py.import("erlang._start")?.call_method1(
        "start",
        (settings.python_path.clone(), settings.log_level.clone()),
    )?;
    py.detach(guard_exit);
    Ok(())
}

fn describe(py: Python<'_>, error: &PyErr) -> String {
    let traceback = error
        .traceback(py)
        .and_then(|traceback| traceback.format().ok())
        .unwrap_or_default();
    format!("{error}\n{traceback}")
}

/// Raises `erlang.Interrupted` in a job of another Python thread, if it is still running.
pub(crate) fn interrupt(activity: Arc<Activity>, job: u64) {
    on_main_thread(Box::new(move |py| {
        let interrupted = py
            .import("erlang")
            .and_then(|erlang| erlang.getattr("Interrupted"));
        match interrupted {
            Ok(class) => activity.interrupt(job, &class),
            Err(error) => log(
                Level::Error,
                format!("cannot interrupt: {error}"),
                Vec::new(),
            ),
        }
    }));
}
