//! Signals that arrive in the middle of a system call. Their handler is that of the whole
//! process, so there is one test in this program.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use reactor::{
    Action, Address, ConnectionHandler, Endpoint, EventHandler, Events, Server, ServerOptions,
};

struct Echo;

impl EventHandler for Echo {
    fn handle_read(&mut self, connection: &mut ConnectionHandler, data: &[u8]) -> Action {
        connection.write(data);
        Action::ReadPending
    }
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn note(_: i32) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn a_signal_interrupts_nothing() {
    // Without SA_RESTART every call that waits says EINTR.
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing but an atomic addition, which is safe in a signal handler.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("a handler");
    let endpoint = Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
    let server = Server::open(&endpoint, ServerOptions::default(), || Echo);
    let server = Arc::new(server.expect("a server"));
    let (started, starts) = mpsc::channel();
    let thread = thread::spawn({
        let server = Arc::clone(&server);
        move || {
            started.send(pthread_self()).expect("the test waits");
            server.run_with(&mut Events, || ControlFlow::Continue(()))
        }
    });
    let reactor = starts.recv().expect("it starts");
    let done = Arc::new(AtomicBool::new(false));
    let storm = thread::spawn({
        let done = Arc::clone(&done);
        move || {
            while !done.load(Ordering::SeqCst) {
                // The thread is joined after this one.
                pthread_kill(reactor, Signal::SIGUSR1).expect("it runs");
                thread::yield_now();
            }
        }
    });
    let Address::Inet(address) = server.address() else {
        panic!("it listens on TCP");
    };
    // On a busy machine signals that were not taken yet fall together.
    while SIGNALS.load(Ordering::SeqCst) < 1000 {
        let mut client = TcpStream::connect(address).expect("it listens");
        let sent = vec![b's'; 1_000_000];
        let mut writer = client.try_clone().expect("a duplicate");
        let data = sent.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&data).expect("it is open");
            writer.shutdown(Shutdown::Write).expect("it is open");
        });
        let mut back = Vec::new();
        client.read_to_end(&mut back).expect("no reset");
        assert!(back == sent);
        writing.join().expect("no panic");
    }
    done.store(true, Ordering::SeqCst);
    storm.join().expect("no panic");
    server.stop(Duration::from_secs(60));
    thread.join().expect("no panic").expect("no error");
}
