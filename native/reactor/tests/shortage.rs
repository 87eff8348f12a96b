//! A process without a free descriptor. The limit is that of the whole process, so there is one
//! test in this program.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
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

fn echoes(client: &mut TcpStream) -> bool {
    client.write_all(b"hello").expect("it is open");
    let mut back = [0; 5];
    client.read_exact(&mut back).expect("an answer");
    &back == b"hello"
}

#[test]
fn without_a_free_descriptor_it_rests_and_then_goes_on() {
    let endpoint = Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
    let server = Server::open(&endpoint, ServerOptions::default(), || Echo);
    let server = Arc::new(server.expect("a server"));
    let turns = Arc::new(AtomicU64::new(0));
    let thread = thread::spawn({
        let (server, turns) = (Arc::clone(&server), Arc::clone(&turns));
        move || {
            let between = || {
                turns.fetch_add(1, Ordering::SeqCst);
                ControlFlow::Continue(())
            };
            server.run_with(&mut Events, between)
        }
    });
    let Address::Inet(address) = server.address() else {
        panic!("it listens on TCP");
    };
    let connect = || TcpStream::connect(address).expect("it listens");
    let mut old = connect();
    assert!(echoes(&mut old));
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).expect("less is allowed");
    let mut files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    // The client needs one, and the server gets none.
    files.pop();
    let mut client = connect();
    while server.shortage() != Some(Errno::EMFILE) {
        thread::yield_now();
    }
    // Who is there already is served; who is not costs a try now and then.
    let before = turns.load(Ordering::SeqCst);
    for _ in 0..10 {
        assert!(echoes(&mut old));
    }
    thread::sleep(Duration::from_millis(500));
    let tries = turns.load(Ordering::SeqCst) - before;
    assert!(
        (1..100).contains(&tries),
        "{tries} turns for 10 echoes and 5 rests"
    );
    drop(files);
    assert!(echoes(&mut client));
    assert_eq!(server.shortage(), None);
    server.stop(Duration::from_secs(60));
    drop((old, client));
    thread.join().expect("no panic").expect("the poller works");
}
