//! The load client against servers that are right and servers that are not: a client that never
//! complains measures nothing.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// servers/epoll_server.c, compiled for these tests.
fn epoll_server() -> Result<&'static str> {
    static BUILT: OnceLock<bool> = OnceLock::new();
    const PROGRAM: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/epoll_server");
    const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/epoll_server.c");
    let built = BUILT.get_or_init(|| {
        let flags = [
            "-std=c11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
        ];
        let compiled = Command::new("cc")
            .args(flags)
            .args(["-o", PROGRAM, SOURCE])
            .status();
        compiled.is_ok_and(|status| status.success())
    });
    if *built {
        Ok(PROGRAM)
    } else {
        Err("cc failed".into())
    }
}

struct EpollServer {
    child: Child,
    port: u16,
}

impl EpollServer {
    fn start(protocol: &str) -> Result<EpollServer> {
        let mut child = Command::new(epoll_server()?)
            .arg(protocol)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        let port = line.trim().strip_prefix("listening ").ok_or("no port")?;
        let port = port.parse()?;
        Ok(EpollServer { child, port })
    }
}

impl Drop for EpollServer {
    fn drop(&mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        assert!(killed.is_ok(), "{killed:?}");
    }
}

fn load(address: SocketAddr, options: &str) -> Result<Output> {
    let output = Command::new(env!("CARGO_BIN_EXE_load"))
        .args(["--address", &address.to_string(), "--warmup", "0.05"])
        .args(options.split_whitespace())
        .stdin(Stdio::null())
        .output()?;
    Ok(output)
}

fn passes_against_epoll_echo(options: &str) -> Result<()> {
    passes("echo", options)
}

fn passes(protocol: &str, options: &str) -> Result<()> {
    let echo = EpollServer::start(protocol)?;
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
fn pipelined_messages_pass_against_a_right_server() -> Result<()> {
    passes_against_epoll_echo("--pipeline 16 --connections 5 --seconds 0.2")?;
    // More than the sockets' buffers hold.
    passes_against_epoll_echo("--pipeline 100 --connections 2 --size 100000 --seconds 0.2")
}

#[test]
fn a_wrong_byte_among_pipelined_messages_is_a_failure() -> Result<()> {
    let flip = |chunk: u32, bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        if chunk == 3 {
            bytes[70] ^= 1;
        }
        Some(bytes)
    };
    let options = "--pipeline 4 --connections 1 --size 64 --seconds 0.3";
    let output = load(serve(flip)?, options)?;
    let text = String::from_utf8(output.stderr)?;
    assert!(text.contains("wrong byte at offset"), "{text}");
    Ok(())
}

#[test]
fn flows_pass_against_a_right_server() -> Result<()> {
    passes("flow", "--upload --connections 3 --seconds 0.2")?;
    passes("flow", "--download --connections 3 --seconds 0.2")
}

#[test]
fn an_upload_that_was_not_counted_is_a_failure() -> Result<()> {
    let output = load(
        serve(|_, _| Some(Vec::new()))?,
        "--upload --connections 1 --seconds 0.1",
    )?;
    assert!(!output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn a_download_of_other_bytes_is_a_failure() -> Result<()> {
    let output = load(
        serve(|_, _| Some(vec![0, 1, 3]))?,
        "--download --connections 1",
    )?;
    let text = String::from_utf8(output.stderr)?;
    assert!(text.contains("wrong bytes after 0"), "{text}");
    Ok(())
}

/// What a run against the plain echo server printed.
fn against_epoll_echo(options: &str) -> Result<String> {
    let echo = EpollServer::start("echo")?;
    said(&load(
        SocketAddr::from(([127, 0, 0, 1], echo.port)),
        &format!("{options} --json"),
    )?)
}

fn said(output: &Output) -> Result<String> {
    assert!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout.clone())?)
}

fn contains_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn every_connection_echoes_in_every_round() -> Result<()> {
    let text = against_epoll_echo("--rounds 3 --connections 300 --size 1 --window 20")?;
    contains_all(&text, &["\"connections\":300", "\"echo_count\":900"]);
    Ok(())
}

#[test]
fn a_crowd_is_served_to_the_last() -> Result<()> {
    for hold in ["--hold 0.05", "--hold-all"] {
        let text = against_epoll_echo(&format!("--crowd --connections 300 {hold}"))?;
        contains_all(&text, &["\"served\":300", "\"still_waiting\":0"]);
    }
    Ok(())
}

#[test]
fn guests_who_are_turned_away_are_counted() -> Result<()> {
    let output = load(serve(|_, _| None)?, "--crowd --connections 5 --json")?;
    contains_all(
        &said(&output)?,
        &["\"served\":0", "\"turned_away\":5", "\"still_waiting\":0"],
    );
    Ok(())
}

#[test]
fn dribblers_go_when_the_server_has_enough() -> Result<()> {
    let address = serve(|chunk, _| (chunk < 3).then(Vec::new))?;
    let options = "--dribble --connections 20 --interval 0.02 --seconds 10 --json";
    contains_all(
        &said(&load(address, options)?)?,
        &["\"gone\":20", "\"answered\":0"],
    );
    Ok(())
}

#[test]
fn a_storm_is_over_when_it_is_told() -> Result<()> {
    // stdin is at its end from the beginning.
    let text = against_epoll_echo("--storm --until-told")?;
    contains_all(&text, &["\"not_opened\":0"]);
    against_epoll_echo("--storm --seconds 0.3")?;
    Ok(())
}

#[test]
fn hoarders_read_all_of_it_in_the_end() -> Result<()> {
    let text = against_epoll_echo("--hoard --connections 2 --total 20000000 --hold 0.2")?;
    contains_all(&text, &["\"bytes_each\":20000000"]);
    Ok(())
}

#[test]
fn hoarders_notice_a_wrong_byte() -> Result<()> {
    let flip = |_: u32, bytes: &[u8]| Some(bytes.iter().map(|byte| byte ^ 1).collect());
    let output = load(serve(flip)?, "--hoard --connections 1 --total 9 --hold 0.1")?;
    let text = String::from_utf8(output.stderr)?;
    assert!(text.contains("wrong bytes after 0"), "{text}");
    Ok(())
}

#[test]
fn those_whose_connections_fail_come_again() -> Result<()> {
    let address = serve(|chunk, bytes| (chunk < 5).then(|| bytes.to_vec()))?;
    let options = "--reconnect --connections 5 --interval 0.005 --seconds 0.5 --json";
    let text = said(&load(address, options)?)?;
    contains_all(&text, &["\"without_echo_at_the_end\":0", "\"refused\":0"]);
    assert!(!text.contains("\"failed\":0,"), "{text}");
    Ok(())
}

#[test]
fn those_who_come_again_notice_a_wrong_byte() -> Result<()> {
    let flip = |_: u32, bytes: &[u8]| Some(bytes.iter().map(|byte| byte ^ 1).collect());
    let output = load(serve(flip)?, "--reconnect --connections 1 --seconds 0.2")?;
    let text = String::from_utf8(output.stderr)?;
    assert!(text.contains("wrong byte at offset 0"), "{text}");
    Ok(())
}

#[test]
fn a_probe_notes_visits_and_echoes() -> Result<()> {
    let text = against_epoll_echo("--probe --seconds 0.3")?;
    contains_all(
        &text,
        &["\"failed\":0", "\"visit_p99_ms\":", "\"echo_p99_ms\":"],
    );
    Ok(())
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
