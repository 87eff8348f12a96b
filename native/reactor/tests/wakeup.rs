//! Every interleaving of senders and a worker that lies down, by loom.
//!
//! `proven` is src/wakeup.rs itself, compiled with loom's atomics. `careless` is the same
//! file with fences that do nothing: a model that still passes then proves nothing, so each
//! that relies on a fence has to fail there.
//!
//! The queues of the model are counters without any order of their own: less than what
//! crossbeam's channels promise. What is proven for them holds for the channels.

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

#[path = "../src"]
mod proven {
    pub(crate) mod sync {
        pub(crate) use crate::Flag as AtomicBool;
        pub(crate) use loom::sync::atomic::{Ordering, fence};
    }
    pub(crate) mod wakeup;
}

#[allow(clippy::duplicate_mod)]
#[path = "../src"]
mod careless {
    pub(crate) mod sync {
        pub(crate) use crate::Flag as AtomicBool;
        pub(crate) use loom::sync::atomic::Ordering;
        pub(crate) fn fence(_: Ordering) {}
    }
    pub(crate) mod wakeup;
}

/// An AtomicBool that stores by swapping. Nothing comes between a swap and the value that it
/// read, so what the worker stores later stays later; loom knows that of two swaps only, and
/// else reports executions that cannot be. The worker alone stores, and all others swap:
/// whatever order a store can have among them, a swap can have, too.
struct Flag(AtomicBool);

impl Flag {
    fn new(value: bool) -> Self {
        Self(AtomicBool::new(value))
    }

    fn load(&self, order: Ordering) -> bool {
        self.0.load(order)
    }

    fn store(&self, value: bool, order: Ordering) {
        self.0.swap(value, order);
    }

    fn swap(&self, value: bool, order: Ordering) -> bool {
        self.0.swap(value, order)
    }
}

/// What both kinds can do.
trait Wakeup: Send + Sync + 'static {
    fn new() -> Self;
    fn is_needed(&self) -> bool;
    fn lie_down(&self, quiet: impl FnOnce() -> bool) -> bool;
    fn get_up(&self);
    fn stop(&self);
    fn is_stopping(&self) -> bool;
}

macro_rules! is_a_wakeup {
    ($kind:ident) => {
        impl Wakeup for $kind::wakeup::Wakeup {
            fn new() -> Self {
                Self::new()
            }
            fn is_needed(&self) -> bool {
                self.is_needed()
            }
            fn lie_down(&self, quiet: impl FnOnce() -> bool) -> bool {
                self.lie_down(quiet)
            }
            fn get_up(&self) {
                self.get_up();
            }
            fn stop(&self) {
                self.stop();
            }
            fn is_stopping(&self) -> bool {
                self.is_stopping()
            }
        }
    };
}

is_a_wakeup!(proven);
is_a_wakeup!(careless);

/// What the worker sleeps in. It remembers that it was rung until somebody wakes from it.
#[derive(Default)]
struct Eventfd {
    rung: Mutex<usize>,
    changed: Condvar,
}

impl Eventfd {
    fn ring(&self) {
        *self.rung.lock().expect("nobody panics") += 1;
        self.changed.notify_one();
    }

    /// Returns how often it was rung. Loom fails when nobody is left to ring.
    fn sleep(&self) -> usize {
        let mut rung = self.rung.lock().expect("nobody panics");
        while *rung == 0 {
            rung = self.changed.wait(rung).expect("nobody panics");
        }
        std::mem::take(&mut rung)
    }
}

/// An inbox of a few messages that cannot be told apart.
struct Inbox<W> {
    waiting: AtomicUsize,
    wakeup: W,
    eventfd: Eventfd,
}

impl<W: Wakeup> Inbox<W> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: AtomicUsize::new(0),
            wakeup: W::new(),
            eventfd: Eventfd::default(),
        })
    }

    fn send(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.wake();
        if self.wakeup.is_stopping() {
            self.take();
        }
    }

    fn wake(&self) {
        if self.wakeup.is_needed() {
            self.eventfd.ring();
        }
    }

    fn stop(&self) {
        self.wakeup.stop();
        self.wake();
    }

    fn take(&self) -> usize {
        self.waiting.swap(0, Ordering::Relaxed)
    }

    fn lie_down(&self) -> bool {
        self.wakeup
            .lie_down(|| self.waiting.load(Ordering::Relaxed) == 0)
    }
}

fn sender<W: Wakeup>(inbox: &Arc<Inbox<W>>) -> thread::JoinHandle<()> {
    let inbox = Arc::clone(inbox);
    thread::spawn(move || inbox.send())
}

/// With one thread beside the worker every execution is walked through, with two all those
/// in which a thread that could have gone on is interrupted three times at most. Two or three
/// show nearly every mistake, says loom's documentation, and all would take hours.
fn walk(others: usize, execution: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = (others > 1).then_some(3);
    model.check(execution);
}

/// A worker that ends when it has `wanted` messages. Without its wake-up one of them would
/// wait for a worker that sleeps for ever, which loom reports.
fn every_message_is_taken<W: Wakeup>(wanted: usize) {
    walk(wanted, move || {
        let inbox = Inbox::<W>::new();
        let senders: Vec<_> = (0..wanted).map(|_| sender(&inbox)).collect();
        let (mut taken, mut announced, mut rung) = (inbox.take(), 0, 0);
        while taken < wanted {
            announced += 1;
            if inbox.lie_down() {
                rung += inbox.eventfd.sleep();
                inbox.wakeup.get_up();
            }
            taken += inbox.take();
        }
        for sender in senders {
            sender.join().expect("it sends");
        }
        assert_eq!(taken, wanted);
        // However many send, one of them calls, and none when nobody is about to sleep.
        assert!(rung <= announced, "{rung} calls, {announced} announcements");
    });
}

#[test]
fn no_message_waits_for_a_worker_that_sleeps() {
    every_message_is_taken::<proven::wakeup::Wakeup>(1);
    every_message_is_taken::<proven::wakeup::Wakeup>(2);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_fences_a_message_waits_for_ever() {
    every_message_is_taken::<careless::wakeup::Wakeup>(1);
}

/// A worker that the kernel wakes by itself, at any time, takes its announcement down: the
/// call that a sender was about to make then comes when the worker sleeps again, or not at
/// all.
fn a_worker_gets_up_by_itself(wanted: usize) {
    walk(wanted, move || {
        let inbox = Inbox::<proven::wakeup::Wakeup>::new();
        let senders: Vec<_> = (0..wanted).map(|_| sender(&inbox)).collect();
        let mut taken = 0;
        // Descriptors became ready while it slept.
        for _ in 0..2 {
            inbox.lie_down();
            inbox.wakeup.get_up();
            taken += inbox.take();
        }
        while taken < wanted {
            if inbox.lie_down() {
                inbox.eventfd.sleep();
                inbox.wakeup.get_up();
            }
            taken += inbox.take();
        }
        for sender in senders {
            sender.join().expect("it sends");
        }
    });
}

#[test]
fn a_worker_that_gets_up_by_itself_misses_nothing() {
    a_worker_gets_up_by_itself(1);
    a_worker_gets_up_by_itself(2);
}

#[test]
fn a_worker_that_never_sleeps_is_never_called() {
    walk(2, || {
        let inbox = Inbox::<proven::wakeup::Wakeup>::new();
        let senders = [sender(&inbox), sender(&inbox)];
        inbox.take();
        for sender in senders {
            sender.join().expect("it sends");
        }
        assert_eq!(*inbox.eventfd.rung.lock().expect("nobody panics"), 0);
    });
}

/// A worker that stops, asked or by itself, while somebody sends.
fn nothing_is_left<W: Wakeup>(asked: bool) {
    walk(1 + usize::from(asked), move || {
        let inbox = Inbox::<W>::new();
        let sends = sender(&inbox);
        if asked {
            let stops = {
                let inbox = Arc::clone(&inbox);
                thread::spawn(move || inbox.stop())
            };
            while !inbox.wakeup.is_stopping() {
                if inbox.lie_down() {
                    inbox.eventfd.sleep();
                    inbox.wakeup.get_up();
                }
                inbox.take();
            }
            stops.join().expect("it stops the worker");
        }
        inbox.wakeup.stop();
        inbox.take();
        sends.join().expect("it sends");
        assert_eq!(inbox.take(), 0, "left in an inbox that nobody reads");
    });
}

#[test]
fn nothing_is_left_in_the_inbox_of_a_worker_that_ends() {
    nothing_is_left::<proven::wakeup::Wakeup>(false);
}

#[test]
fn a_worker_that_is_told_to_stop_wakes_and_leaves_nothing() {
    nothing_is_left::<proven::wakeup::Wakeup>(true);
}

#[test]
#[should_panic(expected = "left in an inbox")]
fn without_fences_something_is_left_in_the_end() {
    nothing_is_left::<careless::wakeup::Wakeup>(false);
}
