//! Log lines on their way to OTP's logger.
//!
//! They go as `{py_log, Level, Text, Metadata}` to the process that registered for them, which
//! acknowledges what it has taken. Beyond a bound of lines in flight a line is dropped and counted:
//! a protocol that logs in a loop fills neither a mailbox nor the memory.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustler::{Encoder, Env, LocalPid, Term};

use crate::beam::post::post;
use crate::python::interpreter;

/// Lines sent and not yet acknowledged: a burst of tracebacks, some megabytes at most.
const MAX_IN_FLIGHT: usize = 1_000;

/// Bytes of one line; the rest is cut off.
const MAX_TEXT_BYTES: usize = 64 * 1024;

static RECEIVER: Mutex<Option<LocalPid>> = Mutex::new(None);
static IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

mod atoms {
    rustler::atoms! { py_log, debug, info, warning, error, critical }
}

/// OTP's levels, as far as Python has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Level {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

impl Level {
    /// The level of a Python log record's `levelno`.
    pub(crate) fn from_python(number: i64) -> Level {
        match number {
            ..20 => Level::Debug,
            20..30 => Level::Info,
            30..40 => Level::Warning,
            40..50 => Level::Error,
            50.. => Level::Critical,
        }
    }

    fn atom(self) -> rustler::Atom {
        match self {
            Level::Debug => atoms::debug(),
            Level::Info => atoms::info(),
            Level::Warning => atoms::warning(),
            Level::Error => atoms::error(),
            Level::Critical => atoms::critical(),
        }
    }
}

/// Logs a line. `metadata` becomes a map with atoms as keys and binaries as values.
pub(crate) fn log(level: Level, text: String, metadata: Vec<(&'static str, String)>) {
    // A forked child has the parent's memory but not its VM: there is nobody to send to.
    let receiver = if interpreter::is_forked_child() {
        None
    } else {
        *RECEIVER.lock()
    };
    let Some(receiver) = receiver else {
        eprintln!("python {level:?}: {text}");
        return;
    };
    if IN_FLIGHT.fetch_add(1, Ordering::AcqRel) >= MAX_IN_FLIGHT {
        IN_FLIGHT.fetch_sub(1, Ordering::AcqRel);
        DROPPED.fetch_add(1, Ordering::AcqRel);
        return;
    }
    let text = cut(text);
    post(receiver, move |env| {
        let metadata = metadata_map(env, &metadata);
        (atoms::py_log(), level.atom(), text, metadata).encode(env)
    });
}

/// From now on `receiver` gets the lines.
pub(crate) fn register(receiver: LocalPid) {
    *RECEIVER.lock() = Some(receiver);
    IN_FLIGHT.store(0, Ordering::Release);
}

/// The receiver has taken `count` lines. Returns how many were dropped since the last time.
pub(crate) fn taken(count: usize) -> u64 {
    // After a restart of the receiver it may acknowledge lines that are no longer counted.
    let _ = IN_FLIGHT.fetch_update(Ordering::AcqRel, Ordering::Acquire, |lines| {
        Some(lines.saturating_sub(count))
    });
    DROPPED.swap(0, Ordering::AcqRel)
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        text.push_str(" [cut]");
    }
    text
}

fn metadata_map<'a>(env: Env<'a>, metadata: &[(&'static str, String)]) -> Term<'a> {
    metadata.iter().fold(
        Term::map_new(env),
        |map, (key, value)| match rustler::Atom::from_str(env, key) {
            Ok(key) => map.map_put(key, value.as_str()).unwrap_or(map),
            Err(_) => map,
        },
    )
}
