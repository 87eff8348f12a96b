//! Messages to processes, from any thread.
//!
//! The BEAM takes a message without the sender's environment only from threads that it did not make.
//! Most of ours are such threads, but a destructor or a full queue may leave us on a scheduler; then
//! a thread of our own, the courier, sends in our place.

use std::sync::OnceLock;
use std::thread;

use crossbeam_channel::{Sender, unbounded};
use rustler::thread::is_scheduler_thread;
use rustler::{Env, LocalPid, OwnedEnv, Term};

type Message = Box<dyn for<'a> FnOnce(Env<'a>) -> Term<'a> + Send>;

static COURIER: OnceLock<Sender<(LocalPid, Message)>> = OnceLock::new();

/// Sends the message that `build` makes. A process that is gone gets nothing, which is no error.
pub(crate) fn post(to: LocalPid, build: impl for<'a> FnOnce(Env<'a>) -> Term<'a> + Send + 'static) {
    if is_scheduler_thread() {
        // An error would mean that the courier has ended, and it never does.
        let _ = courier().send((to, Box::new(build)));
    } else {
        send(&to, build);
    }
}

fn send(to: &LocalPid, build: impl for<'a> FnOnce(Env<'a>) -> Term<'a>) {
    // The only error is a receiver that is gone.
    let _ = OwnedEnv::new().send_and_clear(to, build);
}

fn courier() -> &'static Sender<(LocalPid, Message)> {
    COURIER.get_or_init(|| {
        let (sender, messages) = unbounded::<(LocalPid, Message)>();
        thread::Builder::new()
            .name("py courier".to_owned())
            .spawn(move || {
                for (to, build) in messages {
                    send(&to, build);
                }
            })
            .expect("a thread can be made when the library starts");
        sender
    })
}
