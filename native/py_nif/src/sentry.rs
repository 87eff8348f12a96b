//! The sentry: a thread that notices when a worker is held up.
//!
//! Somebody has to look at the workers now and then while they work. A process of Erlang's could,
//! but a scheduler that was woken spins for a while before it sleeps again, and wakes others: where
//! all cores are busy, ten looks a second took 2 % from the workers. This thread takes some
//! microseconds, and the BEAM hears only of what it has to do something about. While all workers
//! are idle it does not look at all.
//!
//! It takes neither the GIL nor a lock that a worker holds while it works.

use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use reactor_python::{Activity, Glance};
use rustler::{Encoder, Env, LocalPid, Term};

use crate::beam::post::post;
use crate::loan::Loan;

mod atoms {
    rustler::atoms! { age_ms, callback, fd, job, none, py_slow }
}

/// Between two looks at a worker that accepts by itself: a client waits so long at most before
/// somebody else accepts it while a callback holds the worker up.
const LOAN_CHECK: Duration = Duration::from_millis(250);

static SENTRY: OnceLock<Thread> = OnceLock::new();
static BEAT: Mutex<Beat> = Mutex::new(Beat {
    watcher: None,
    workers: Vec::new(),
    loans: Vec::new(),
    asked: false,
    wait: Some(Duration::ZERO),
});

/// What the sentry looks after.
struct Beat {
    watcher: Option<Watcher>,
    workers: Vec<Worker>,
    loans: Vec<Weak<Loan>>,
    /// All workers were idle, and whichever begins a job says so.
    asked: bool,
    /// From the last look until the next one; None until somebody wakes it.
    wait: Option<Duration>,
}

/// Who is told of jobs that have been running for how long.
#[derive(Clone, Copy)]
struct Watcher {
    process: LocalPid,
    slow: Duration,
}

/// A worker, as the sentry saw it last.
struct Worker {
    context: LocalPid,
    activity: Weak<Activity>,
    next_job: u64,
    /// A job, and the age at which it is told of.
    due: Option<(u64, Duration)>,
}

/// What a look brought.
struct Round {
    /// Who is told of which jobs.
    slow: Vec<(LocalPid, LocalPid, Glance)>,
    held_up: Vec<Arc<Loan>>,
    /// All of them do nothing: who begins a job is to say so.
    idle: Vec<Arc<Activity>>,
    wait: Option<Duration>,
}

/// Starts the thread, unless it was started before.
///
/// # Errors
/// There can be no more threads.
pub(crate) fn start() -> io::Result<()> {
    // The library is loaded again after a purge of its module; the thread is still there.
    if SENTRY.get().is_none() {
        let sentry = thread::Builder::new()
            .name("py sentry".to_owned())
            .spawn(stand)?;
        SENTRY.get_or_init(|| sentry.thread().clone());
    }
    Ok(())
}

/// From here on `process` gets `{py_slow, Context, Glance}` of each job that has been running for so
/// long, and again whenever it has taken twice as long. It takes the place of who was told before;
/// None: nobody is told.
pub(crate) fn watch_jobs(process: LocalPid, slow: Option<Duration>) {
    let watcher = slow.map(|slow| Watcher { process, slow });
    let mut beat = BEAT.lock();
    beat.watcher = watcher;
    for worker in &mut beat.workers {
        // Who was told of it may not be there any more, or may have wanted other times.
        worker.due = None;
    }
    look_within(slow.unwrap_or(Duration::MAX), beat);
}

/// Looks after the worker of a context, for as long as it is there.
pub(crate) fn look_after(context: LocalPid, activity: &Arc<Activity>) {
    let worker = Worker {
        context,
        activity: Arc::downgrade(activity),
        next_job: activity.next_job(),
        due: None,
    };
    let mut beat = BEAT.lock();
    beat.workers.push(worker);
    // This one was not asked.
    beat.asked = false;
    let slow = beat.watcher.map(|watcher| watcher.slow);
    look_within(slow.unwrap_or(Duration::MAX), beat);
}

/// Has the acceptors told should the worker that has the loan be held up.
pub(crate) fn look_after_loan(loan: &Arc<Loan>) {
    let mut beat = BEAT.lock();
    beat.loans.push(Arc::downgrade(loan));
    look_within(LOAN_CHECK, beat);
}

/// Wakes the thread if it would come round to look only later than this.
fn look_within(time: Duration, mut beat: MutexGuard<'_, Beat>) {
    if beat.wait.is_none_or(|wait| wait > time) {
        // A look before its time does not show what the last one missed.
        beat.asked = false;
        drop(beat);
        wake_up();
    }
}

fn wake_up() {
    if let Some(sentry) = SENTRY.get() {
        sentry.unpark();
    }
}

/// The life of the thread.
fn stand() {
    loop {
        let round = BEAT.lock().look();
        for (watcher, context, glance) in round.slow {
            post(watcher, move |env| {
                (atoms::py_slow(), context, encode_glance(env, glance)).encode(env)
            });
        }
        for loan in round.held_up {
            loan.tell();
        }
        for activity in round.idle {
            activity.when_busy(wake_up);
        }
        match round.wait {
            Some(wait) => thread::park_timeout(wait),
            None => thread::park(),
        }
    }
}

impl Beat {
    fn look(&mut self) -> Round {
        let mut round = Round {
            slow: Vec::new(),
            held_up: Vec::new(),
            idle: Vec::new(),
            wait: None,
        };
        self.workers
            .retain(|worker| worker.activity.strong_count() > 0);
        if let Some(watcher) = self.watcher {
            self.look_at_workers(watcher, &mut round);
        }
        self.look_at_loans(&mut round);
        self.wait = round.wait;
        round
    }

    fn look_at_workers(&mut self, watcher: Watcher, round: &mut Round) {
        let mut moves = false;
        let mut wait = watcher.slow;
        for worker in &mut self.workers {
            let Some(activity) = worker.activity.upgrade() else {
                continue;
            };
            let next_job = activity.next_job();
            moves |= next_job != worker.next_job;
            worker.next_job = next_job;
            if let Some(glance) = activity.glance() {
                moves = true;
                match worker.left(glance, watcher.slow) {
                    Some(left) => wait = wait.min(left),
                    None => round.slow.push((watcher.process, worker.context, glance)),
                }
            }
            round.idle.push(activity);
        }
        // A job that begins in the moment in which its worker is asked to say so may be missed, so
        // there is another look after that.
        let sleeps = self.asked && !moves;
        if self.asked || moves {
            round.idle.clear();
        }
        self.asked = !moves;
        if !sleeps {
            round.wait = (!self.workers.is_empty()).then_some(wait);
        }
    }

    fn look_at_loans(&mut self, round: &mut Round) {
        self.loans.retain(|loan| {
            let Some(loan) = loan.upgrade().filter(|loan| !loan.is_revoked()) else {
                return false;
            };
            if !loan.stands() {
                round.held_up.push(loan);
            }
            true
        });
        if !self.loans.is_empty() {
            let wait = round.wait.map_or(LOAN_CHECK, |wait| wait.min(LOAN_CHECK));
            round.wait = Some(wait);
        }
    }
}

impl Worker {
    /// The time until its job is to be told of; None if that is now, and then it is taken as told.
    fn left(&mut self, glance: Glance, slow: Duration) -> Option<Duration> {
        let mut due = match self.due {
            Some((job, due)) if job == glance.job => due,
            _ => slow,
        };
        let left = due.checked_sub(glance.age).filter(|left| !left.is_zero());
        while due <= glance.age {
            due = due.saturating_mul(2);
        }
        self.due = Some((glance.job, due));
        left
    }
}

/// `#{job, age_ms, callback, fd}`
pub(crate) fn encode_glance(env: Env<'_>, glance: Glance) -> Term<'_> {
    let (callback, fd) = match glance.place {
        Some(place) => (place.callback.encode(env), place.fd.encode(env)),
        None => (atoms::none().encode(env), atoms::none().encode(env)),
    };
    let pairs = [
        (atoms::job(), glance.job.encode(env)),
        (atoms::age_ms(), millis(glance.age).encode(env)),
        (atoms::callback(), callback),
        (atoms::fd(), fd),
    ];
    Term::map_from_pairs(env, &pairs).expect("no two keys are the same")
}

/// Whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
