//! What is special about pipes, terminals and datagrams.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Script, World, count, no_block, pattern};
use nix::fcntl::OFlag;
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::pipe2;
use reactor::{Action, Demultiplexer, Reason};

in_every_world! {
    a_pipe_brings_data_and_its_end,
    a_pipe_that_ends_silently_ends,
    a_pipe_in_packet_mode_hides_no_data,
    a_pipe_that_nobody_writes_to_any_more_ends_its_pause,
    a_pipe_takes_more_than_it_holds,
    a_pipe_that_nobody_reads_is_lost,
    a_terminal_echoes,
    the_far_side_of_a_terminal_echoes,
    a_closed_terminal_is_the_end_of_its_stream,
    a_full_terminal_that_is_closed_is_lost,
    a_datagram_is_answered_to_its_sender,
    an_empty_datagram_is_a_datagram,
    a_refused_datagram_does_not_end_the_socket,
    a_connected_datagram_socket_outlives_a_refusal,
    unix_datagrams_are_answered,
    a_nameless_sender_gets_no_answer_and_does_no_harm,
    a_pair_of_datagram_sockets_echoes_until_its_buffer_is_full,
    a_full_queue_of_an_unconnected_peer_costs_datagrams_only,
    a_datagram_socket_is_paused_and_resumed,
}

fn pipe() -> (OwnedFd, File) {
    pipe_with(OFlag::empty())
}

fn pipe_with(flags: OFlag) -> (OwnedFd, File) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | flags).expect("a pipe");
    (read, write.into())
}

fn a_pipe_brings_data_and_its_end<D: Demultiplexer>(mut world: World<D>) {
    let (read, mut write) = pipe();
    let record = world.serve(read, Script::echo().on_data(|_, _| Ok(Action::ReadPending)));
    write.write_all(b"one").expect("room");
    world.until("data", || count(&record.bytes) == 3);
    world.until_quiet(&record);
    write.write_all(b"two").expect("room");
    drop(write);
    world.until("the loss", || record.is_lost());
    assert_eq!(count(&record.bytes), 6);
    assert_eq!((count(&record.eof), count(&record.lost)), (1, 1));
    assert_eq!(record.reason(), Reason::Eof);
}

fn a_pipe_that_ends_silently_ends<D: Demultiplexer>(mut world: World<D>) {
    let (read, write) = pipe();
    let record = world.serve(read, Script::echo());
    world.until("the connection", || count(&record.connected) == 1);
    world.until_quiet(&record);
    drop(write);
    world.until("the loss", || record.is_lost());
    assert_eq!(record.reason(), Reason::Eof);
}

fn a_pipe_in_packet_mode_hides_no_data<D: Demultiplexer>(mut world: World<D>) {
    let (read, mut write) = pipe_with(OFlag::O_DIRECT);
    for packet in [&b"one"[..], b"two", b"three"] {
        write.write_all(packet).expect("room");
    }
    let record = world.serve(read, Script::echo().on_data(|_, _| Ok(Action::ReadPending)));
    world.until("all packets", || count(&record.bytes) == 11);
    assert_eq!(count(&record.readable), 3);
}

fn a_pipe_that_nobody_writes_to_any_more_ends_its_pause<D: Demultiplexer>(mut world: World<D>) {
    let (read, mut write) = pipe();
    let record = world.serve(read, Script::echo().on_connected(|_, _| Ok(Action::Pause)));
    world.until("the connection", || count(&record.connected) == 1);
    world.until_quiet(&record);
    write.write_all(b"kept").expect("room");
    drop(write);
    world.until_quiet(&record);
    assert!(!record.is_lost(), "there is still something to read");
    record.resume(Action::ReadPending);
    world.until("data", || count(&record.bytes) == 4);

    let (read, write) = pipe();
    let record = world.serve(read, Script::echo().on_connected(|_, _| Ok(Action::Pause)));
    world.until("the connection", || count(&record.connected) == 1);
    drop(write);
    world.until("the loss", || record.is_lost());
    assert_eq!(record.reason(), Reason::PeerGone);
}

fn a_pipe_takes_more_than_it_holds<D: Demultiplexer>(mut world: World<D>) {
    let (read, write) = pipe_with(OFlag::O_NONBLOCK);
    let mut read = File::from(read);
    let record = world.serve(
        write,
        Script::echo().on_connected(|talk, _| {
            talk.outbox.push_back(pattern(1_000_000));
            Ok(Action::WritePending)
        }),
    );
    let mut got = Vec::new();
    let mut buffer = vec![0; 10_000];
    world.until("all bytes", || {
        if let Some(length) = no_block(read.read(&mut buffer)) {
            got.extend_from_slice(&buffer[..length]);
        }
        got.len() == 1_000_000
    });
    assert!(got == pattern(1_000_000));
    world.until_quiet(&record);
    assert!(!record.is_lost());
    drop(read);
    world.until("the loss", || record.is_lost());
    assert_eq!(count(&record.lost), 1);
}

fn a_pipe_that_nobody_reads_is_lost<D: Demultiplexer>(mut world: World<D>) {
    let (read, write) = pipe();
    let record = world.serve(
        write,
        Script::echo().on_connected(|talk, _| {
            talk.outbox.push_back(pattern(1_000_000));
            Ok(Action::WritePending)
        }),
    );
    world.until("a refusal", || count(&record.writable) == 1);
    world.until_quiet(&record);
    drop(read);
    world.until("the loss", || record.is_lost());
    assert_eq!(count(&record.lost), 1);
    assert!(record.calls() < 4, "it spins");
}

fn terminal() -> (File, File) {
    let pty = openpty(None, None).expect("a terminal");
    let mut raw = tcgetattr(&pty.slave).expect("its settings");
    cfmakeraw(&mut raw);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &raw).expect("raw mode");
    for side in [&pty.master, &pty.slave] {
        nix::fcntl::fcntl(side, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .expect("non-blocking");
    }
    (pty.master.into(), pty.slave.into())
}

fn a_terminal_echoes<D: Demultiplexer>(mut world: World<D>) {
    let (master, mut slave) = terminal();
    world.serve(master, Script::echo());
    for size in [1, 100, 4000, 100_000] {
        assert!(world.exchange(&mut slave, &pattern(size)) == pattern(size));
    }
}

fn the_far_side_of_a_terminal_echoes<D: Demultiplexer>(mut world: World<D>) {
    let (mut master, slave) = terminal();
    let record = world.serve(slave, Script::echo());
    for size in [1, 100, 4000, 100_000] {
        assert!(world.exchange(&mut master, &pattern(size)) == pattern(size));
    }
    drop(master);
    world.until("the loss", || record.is_lost());
    assert_eq!(count(&record.lost), 1);
}

fn a_closed_terminal_is_the_end_of_its_stream<D: Demultiplexer>(mut world: World<D>) {
    let (master, mut slave) = terminal();
    let record = world.serve(master, Script::echo());
    assert_eq!(world.exchange(&mut slave, b"hello"), b"hello");
    world.until_quiet(&record);
    drop(slave);
    world.until("the loss", || record.is_lost());
    assert_eq!((count(&record.eof), count(&record.lost)), (1, 1));
    assert_eq!(record.reason(), Reason::Eof);
}

fn a_full_terminal_that_is_closed_is_lost<D: Demultiplexer>(mut world: World<D>) {
    let (master, slave) = terminal();
    let record = world.serve(
        master,
        Script::echo().on_connected(|talk, _| {
            talk.outbox.push_back(pattern(1_000_000));
            Ok(Action::Close)
        }),
    );
    world.until("a refusal", || count(&record.flushes) > 0);
    world.until_quiet(&record);
    assert!(!record.is_lost());
    drop(slave);
    world.until("the loss", || record.is_lost());
    assert_eq!(count(&record.lost), 1);
}

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_nonblocking(true).expect("non-blocking");
    socket
}

fn hear<D: Demultiplexer>(world: &mut World<D>, socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let mut got = None;
    world.until("an answer", || {
        got = no_block(socket.recv(&mut buffer));
        got.is_some()
    });
    buffer.truncate(got.expect("until it came"));
    buffer
}

fn a_datagram_is_answered_to_its_sender<D: Demultiplexer>(mut world: World<D>) {
    let server = udp();
    let address = server.local_addr().expect("an address");
    let record = world.serve(server, Script::echo());
    let clients = [udp(), udp(), udp()];
    for round in 1..20 {
        for (number, client) in clients.iter().enumerate() {
            let message = pattern(round * 100 + number);
            client.send_to(&message, address).expect("room");
        }
        for (number, client) in clients.iter().enumerate() {
            let answer = hear(&mut world, client);
            assert!(answer == pattern(round * 100 + number));
        }
    }
    assert_eq!(count(&record.readable), 57);
    let largest = pattern(65_507);
    clients[0].send_to(&largest, address).expect("room");
    assert!(hear(&mut world, &clients[0]) == largest);
}

fn an_empty_datagram_is_a_datagram<D: Demultiplexer>(mut world: World<D>) {
    let server = udp();
    let address = server.local_addr().expect("an address");
    let record = world.serve(server, Script::echo());
    let client = udp();
    for message in [&b""[..], b"one", b"", b""] {
        client.send_to(message, address).expect("room");
        assert_eq!(hear(&mut world, &client), message);
    }
    assert_eq!((count(&record.readable), count(&record.eof)), (4, 0));
    assert!(!record.is_lost());
}

fn a_refused_datagram_does_not_end_the_socket<D: Demultiplexer>(mut world: World<D>) {
    let server = udp();
    let address = server.local_addr().expect("an address");
    let vanished = udp();
    for _ in 0..3 {
        vanished.send_to(b"anybody?", address).expect("room");
    }
    drop(vanished);
    let record = world.serve(server, Script::echo());
    world.until("the data", || count(&record.readable) == 3);
    world.until_quiet(&record);
    let client = udp();
    client.send_to(b"me", address).expect("room");
    assert_eq!(hear(&mut world, &client), b"me");
    assert!(!record.is_lost());
}

fn a_connected_datagram_socket_outlives_a_refusal<D: Demultiplexer>(mut world: World<D>) {
    let (server, client) = (udp(), udp());
    let address = client.local_addr().expect("an address");
    server.connect(address).expect("connected");
    let home = server.local_addr().expect("an address");
    drop(client);
    let record = world.serve(
        server,
        Script::echo().on_connected(|talk, _| {
            talk.outbox.extend([b"one".to_vec(), b"two".to_vec()]);
            Ok(Action::WritePending)
        }),
    );
    world.until("the writes", || count(&record.writable) > 0);
    world.until_quiet(&record);
    assert!(!record.is_lost());
    let client = UdpSocket::bind(address).expect("the port is free again");
    client.set_nonblocking(true).expect("non-blocking");
    client.send_to(b"back", home).expect("room");
    assert_eq!(hear(&mut world, &client), b"back");
}

/// A path for a socket that no other test uses.
fn path() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    std::env::temp_dir().join(format!("reactor-{}-{number}", std::process::id()))
}

struct Named {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Named {
    fn new() -> Self {
        let path = path();
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_nonblocking(true).expect("non-blocking");
        Self { socket, path }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn unix_datagrams_are_answered<D: Demultiplexer>(mut world: World<D>) {
    let (server, client) = (Named::new(), Named::new());
    let record = world.serve(&server.socket, Script::echo());
    let mut buffer = vec![0; 200_000];
    for size in [0, 1, 1000, 65_536, 100_000] {
        let message = pattern(size);
        client.socket.send_to(&message, &server.path).expect("room");
        let mut got = None;
        world.until("an answer", || {
            got = no_block(client.socket.recv(&mut buffer));
            got.is_some()
        });
        assert!(got == Some(size) && buffer[..size] == message);
    }
    let peer = record.descriptor().peer();
    assert_eq!(peer, Some(reactor::Address::Unix(client.path.clone())));
}

fn a_nameless_sender_gets_no_answer_and_does_no_harm<D: Demultiplexer>(mut world: World<D>) {
    let (server, client) = (Named::new(), Named::new());
    let record = world.serve(&server.socket, Script::echo());
    let nameless = UnixDatagram::unbound().expect("a socket");
    nameless.send_to(b"who?", &server.path).expect("room");
    world.until("the data", || count(&record.readable) == 1);
    world.until_quiet(&record);
    assert_eq!(record.descriptor().peer(), None);
    client.socket.send_to(b"me", &server.path).expect("room");
    let mut buffer = [0; 10];
    world.until("an answer", || {
        no_block(client.socket.recv(&mut buffer)) == Some(2)
    });
    assert!(!record.is_lost());
}

fn a_pair_of_datagram_sockets_echoes_until_its_buffer_is_full<D: Demultiplexer>(
    mut world: World<D>,
) {
    let (server, client) = UnixDatagram::pair().expect("a pair");
    client.set_nonblocking(true).expect("non-blocking");
    let record = world.serve(
        server,
        Script::echo().on_data(|talk, _| {
            talk.outbox
                .extend((0..1000).map(|number| pattern(1000 + number)));
            Ok(Action::WritePending)
        }),
    );
    client.send(b"?").expect("room");
    world.until("a refusal", || count(&record.writable) == 1);
    world.until_quiet(&record);
    let mut buffer = [0; 4000];
    let mut heard = 0;
    world.until("all of them", || {
        while let Some(length) = no_block(client.recv(&mut buffer)) {
            assert_eq!(length, 1000 + heard);
            heard += 1;
        }
        heard == 1000
    });
    assert!(!record.is_lost());
}

fn a_full_queue_of_an_unconnected_peer_costs_datagrams_only<D: Demultiplexer>(mut world: World<D>) {
    let (server, client) = (Named::new(), Named::new());
    let record = world.serve(&server.socket, Script::echo());
    // More than the queue of a Unix socket and its buffer take.
    let mut sent = 0;
    world.until("all of them", || {
        while sent < 1000 && no_block(client.socket.send_to(b"x", &server.path)).is_some() {
            sent += 1;
        }
        count(&record.readable) == 1000
    });
    world.until_quiet(&record);
    assert!(record.calls() < 2100, "it spins");
    let mut buffer = [0; 10];
    while no_block(client.socket.recv(&mut buffer)).is_some() {}
    client.socket.send_to(b"me", &server.path).expect("room");
    world.until("an answer", || {
        no_block(client.socket.recv(&mut buffer)) == Some(2)
    });
}

fn a_datagram_socket_is_paused_and_resumed<D: Demultiplexer>(mut world: World<D>) {
    let server = udp();
    let address = server.local_addr().expect("an address");
    let record = world.serve(
        server,
        Script::echo().on_connected(|_, _| Ok(Action::Pause)),
    );
    let client = udp();
    for message in [b"one", b"two"] {
        client.send_to(message, address).expect("room");
    }
    world.until("the connection", || count(&record.connected) == 1);
    world.until_quiet(&record);
    assert_eq!(record.calls(), 0);
    record.resume(Action::ReadPending);
    assert_eq!(hear(&mut world, &client), b"one");
    assert_eq!(hear(&mut world, &client), b"two");
}
