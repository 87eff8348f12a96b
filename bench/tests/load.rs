//! The load client against servers that are right and servers that are not: a client that never
//! complains measures nothing.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct EpollEcho {
    child: Child,
    port: u16,
}

impl EpollEcho {
    fn start() -> Result<EpollEcho> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_epoll_echo"))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        let port = line.trim().strip_prefix("listening ").ok_or("no port")?;
        let port = port.parse()?;
        Ok(EpollEcho { child, port })
    }
}

impl Drop for EpollEcho {
    fn drop(&mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        assert!(killed.is_ok(), "{killed:?}");
    }
}

fn load(address: SocketAddr, options: &str) -> Result<Output> {
    let output = Command::new(env!("CARGO_BIN_EXE_load"))
        .args(["--address", &address.to_string(), "--warmup", "0.05"])
        .args(options.split_whitespace())
        .output()?;
    Ok(output)
}

fn passes_against_epoll_echo(options: &str) -> Result<()> {
    let echo = EpollEcho::start()?;
    let pid = echo.child.id();
    let address = SocketAddr::from(([127, 0, 0, 1], echo.port));
    let output = load(address, &format!("{options} --json --pid {pid}"))?;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    assert!(
        text.contains("\"cpu_us\":") && !text.contains("\"count\":0,"),
        "{text}"
    );
    Ok(())
}

/// Serves every connection on a thread of its own with `reply`, which gets the number of the
/// chunk, counted from 1, and the chunk, and says what to send; nothing means close.
fn serve(reply: fn(u32, &[u8]) -> Option<Vec<u8>>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for socket in listener.incoming().map_while(std::result::Result::ok) {
            thread::spawn(move || converse(socket, reply));
        }
    });
    Ok(address)
}

fn converse(mut socket: TcpStream, reply: fn(u32, &[u8]) -> Option<Vec<u8>>) {
    let mut buffer = vec![0; 1 << 16];
    for chunk in 1.. {
        let got = match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(got) => got,
        };
        match reply(chunk, &buffer[..got]) {
            Some(bytes) if socket.write_all(&bytes).is_ok() => {}
            Some(_) | None => return,
        }
    }
}

fn fails_with(reply: fn(u32, &[u8]) -> Option<Vec<u8>>, complaint: &str) -> Result<()> {
    let options = "--connections 2 --seconds 0.2";
    let output = load(serve(reply)?, options)?;
    let text = String::from_utf8(output.stderr)?;
    assert!(
        !output.status.success() && text.contains(complaint),
        "{text}"
    );
    Ok(())
}

#[test]
fn steady_load_passes_against_a_right_server() -> Result<()> {
    passes_against_epoll_echo("--connections 5 --seconds 0.2")
}

#[test]
fn messages_larger_than_a_socket_buffer_pass() -> Result<()> {
    passes_against_epoll_echo("--connections 2 --seconds 0.5 --size 3000000")
}

#[test]
fn idle_connections_are_still_alive_at_the_end() -> Result<()> {
    passes_against_epoll_echo("--connections 3 --seconds 0.2 --idle 300 --greet")
}

#[test]
fn churn_passes_against_a_right_server() -> Result<()> {
    passes_against_epoll_echo("--churn --connections 5 --seconds 0.2")
}

#[test]
fn mixed_close_passes_against_a_right_server() -> Result<()> {
    passes_against_epoll_echo("--mixed-close --connections 5 --count 401")
}

#[test]
fn one_wrong_byte_in_the_hundredth_message_is_a_failure() -> Result<()> {
    fn flip(chunk: u32, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        if chunk == 100 {
            bytes[63] ^= 1;
        }
        Some(bytes)
    }
    fails_with(flip, "wrong byte at offset 63 of message 100")
}

#[test]
fn a_byte_too_many_is_a_failure() -> Result<()> {
    fails_with(
        |_, bytes| Some([bytes, b"x"].concat()),
        "wrong byte at offset 64",
    )
}

#[test]
fn a_connection_closed_by_the_server_is_a_failure() -> Result<()> {
    fails_with(
        |chunk, bytes| (chunk < 50).then(|| bytes.to_vec()),
        "closed by the server",
    )
}

#[test]
fn a_missing_server_is_a_failure() -> Result<()> {
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let output = load(nobody, "--connections 1 --seconds 0.1")?;
    assert!(!output.status.success());
    Ok(())
}
