//! Fixed work for the counting of instructions: `fixed_work CONNECTIONS BYTES MESSAGES`.
//!
//! One reactor serves both ends of each connection: at one end an echo, at the other a client that
//! sends its next message when the last one is back. All of it happens on one thread, in the same
//! order every time. It ends after so many messages in all.

#![deny(unsafe_code)]

use std::env;
use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reactor::{Action, ConnectionHandler, EventHandler, Reactor};

struct Echo;

impl EventHandler for Echo {
    fn handle_read(&mut self, connection: &mut ConnectionHandler, data: &[u8]) -> Action {
        connection.write(data);
        Action::ReadPending
    }
}

struct Client {
    message: Vec<u8>,
    back: usize,
    left: Arc<AtomicUsize>,
    reactor: Arc<Reactor>,
}

impl Client {
    fn send(&mut self, connection: &mut ConnectionHandler) -> Action {
        self.back = 0;
        if self.left.load(Ordering::Relaxed) == 0 {
            self.reactor.stop();
        } else {
            self.left.fetch_sub(1, Ordering::Relaxed);
            connection.write(&self.message);
        }
        Action::ReadPending
    }
}

impl EventHandler for Client {
    fn handle_open(&mut self, connection: &mut ConnectionHandler) -> Action {
        self.send(connection)
    }

    fn handle_read(&mut self, connection: &mut ConnectionHandler, data: &[u8]) -> Action {
        self.back += data.len();
        if self.back == self.message.len() {
            return self.send(connection);
        }
        Action::ReadPending
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Vec<usize> = env::args().skip(1).flat_map(|word| word.parse()).collect();
    let [connections, bytes, messages] = numbers[..] else {
        return Err("usage: fixed_work CONNECTIONS BYTES MESSAGES".into());
    };
    let reactor = Arc::new(Reactor::open()?);
    let left = Arc::new(AtomicUsize::new(messages));
    for _ in 0..connections {
        let (near, far) = UnixStream::pair()?;
        reactor.register(far, Echo)?;
        let client = Client {
            message: vec![b'x'; bytes],
            back: 0,
            left: Arc::clone(&left),
            reactor: Arc::clone(&reactor),
        };
        reactor.register(near, client)?;
    }
    reactor.run()?;
    if left.load(Ordering::Relaxed) > 0 {
        return Err("it ended too early".into());
    }
    Ok(())
}
