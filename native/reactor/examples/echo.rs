//! Sends back whatever comes. `cargo run --release -p reactor --example echo -- [HOST:PORT]`

use std::env;
use std::error::Error;

use reactor::{Action, ConnectionHandler, Endpoint, EventHandler, Reason, Server, ServerOptions};

struct Echo {
    bytes: u64,
}

impl EventHandler for Echo {
    fn handle_read(&mut self, connection: &mut ConnectionHandler, data: &[u8]) -> Action {
        self.bytes += data.len() as u64;
        connection.write(data);
        Action::ReadPending
    }

    fn handle_close(&mut self, connection: &ConnectionHandler, reason: Reason) {
        if !matches!(reason, Reason::Closed | Reason::Eof) {
            let Self { bytes } = self;
            let number = connection.number();
            eprintln!("connection {number} is over after {bytes} bytes: {reason}");
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1);
    let address = address.as_deref().unwrap_or("127.0.0.1:0").parse()?;
    let server = Server::open(&Endpoint::Tcp(address), ServerOptions::default(), || Echo {
        bytes: 0,
    })?;
    println!("listening {}", server.address());
    server.run()?;
    Ok(())
}
