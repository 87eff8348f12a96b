//! Whose a descriptor is: what is adopted, what is closed, and what happens when somebody
//! closes a number behind the engine's back.
//!
//! Numbers belong to the process, so these tests run one after the other.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard};

use common::{PATIENCE, Script, World, count, lock, pattern, streams, tcp, unix};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{close, pipe};
use reactor::{
    Acceptor, Action, AdoptError, Demultiplexer, Descriptor, Endpoint, Kind, ListenOptions,
    Readiness, Reason,
};

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    lock(&ALONE)
}

fn open_descriptors() -> Vec<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("a list");
    let mut numbers: Vec<RawFd> = entries
        .map(|entry| entry.expect("an entry").file_name())
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    // Without the one through which the list was read.
    numbers.retain(|number| std::fs::read_link(format!("/proc/self/fd/{number}")).is_ok());
    numbers
}

/// Opens files until one gets `number`, and gives up all but that one.
fn take_number(number: RawFd) -> OwnedFd {
    let mut others = Vec::new();
    loop {
        let file = nix::fcntl::open("/dev/null", nix::fcntl::OFlag::O_CLOEXEC, Mode::empty())
            .expect("a file");
        if file.as_raw_fd() == number {
            return file;
        }
        assert!(file.as_raw_fd() < number, "{number} is not free");
        others.push(file);
    }
}

/// Adopts `fd` under `number`, which must be free.
fn adopt_as(number: RawFd, fd: &impl AsFd) -> Arc<Descriptor> {
    let mut others = Vec::new();
    loop {
        let next = fd.as_fd().try_clone_to_owned().expect("a duplicate");
        if next.as_raw_fd() == number {
            drop(next);
            let descriptor = Descriptor::adopt(fd.as_fd()).expect("it can be served");
            assert_eq!(descriptor.number(), number);
            return descriptor;
        }
        assert!(next.as_raw_fd() < number, "{number} is not free");
        others.push(next);
    }
}

/// A duplicate of `what` under `number`, which must be free.
fn duplicate_as(number: RawFd, what: &impl AsFd) -> OwnedFd {
    let mut taken = take_number(number);
    nix::unistd::dup2(what, &mut taken).expect("a duplicate");
    taken
}

fn kernels(descriptor: &Descriptor) -> BorrowedFd<'_> {
    descriptor.fd().expect("it is the kernel's")
}

fn inode(fd: &impl AsFd) -> u64 {
    fstat(fd).expect("it is open").st_ino
}

#[test]
fn what_cannot_be_served_is_refused_with_its_kind() {
    let _alone = alone();
    let refused = |fd: &dyn AsFd| Descriptor::adopt(fd.as_fd()).err();
    let kind = |name| Some(AdoptError::Unsupported(name));
    let file = File::open("/proc/self/exe").expect("a file");
    assert_eq!(refused(&file), kind("regular"));
    assert_eq!(
        refused(&File::open("/").expect("a directory")),
        kind("directory")
    );
    assert_eq!(
        refused(&File::open("/dev/null").expect("a device")),
        kind("character_device")
    );
    let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty());
    assert_eq!(refused(&epoll.expect("an epoll").0), kind("epoll"));
    let event = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    assert_eq!(refused(&event), kind("anonymous"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    assert_eq!(refused(&listener), kind("listener"));
    let path = std::env::temp_dir().join(format!("reactor-listener-{}", std::process::id()));
    let listener = UnixListener::bind(&path).expect("a listener");
    std::fs::remove_file(&path).expect("its file");
    assert_eq!(refused(&listener), kind("listener"));
    let packets = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::empty(),
    );
    assert_eq!(refused(&packets.expect("a pair").0), kind("seqpacket"));
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::empty(),
        None,
    );
    assert_eq!(refused(&netlink.expect("a socket")), kind("socket"));

    let (closed, _other) = pipe().expect("a pipe");
    close(closed.as_raw_fd()).expect("it was open");
    assert_eq!(refused(&closed), Some(AdoptError::BadDescriptor));
    // It was closed already, and nobody else may be.
    let _ = closed.into_raw_fd();
}

#[test]
fn what_can_be_served_is_known_by_its_kind() {
    let _alone = alone();
    let kind = |fd: &dyn AsFd| Descriptor::adopt(fd.as_fd()).map(|own| own.kind());
    assert_eq!(kind(&tcp().0), Ok(Kind::Tcp));
    assert_eq!(kind(&unix().0), Ok(Kind::UnixStream));
    let (read, write) = pipe().expect("a pipe");
    assert_eq!(kind(&read), Ok(Kind::Pipe));
    assert_eq!(kind(&write), Ok(Kind::Pipe));
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    assert_eq!(kind(&pty.master), Ok(Kind::Tty));
    assert_eq!(kind(&pty.slave), Ok(Kind::Tty));
    let udp =
        std::net::UdpSocket::bind("[::1]:0").or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"));
    assert_eq!(kind(&udp.expect("a socket")), Ok(Kind::Udp));
    let pair = std::os::unix::net::UnixDatagram::pair().expect("a pair");
    assert_eq!(kind(&pair.0), Ok(Kind::UnixDatagram));
}

#[test]
fn a_listening_socket_that_somebody_closed_takes_nobody_with_it() {
    let _alone = alone();
    let endpoint = Endpoint::Tcp(([127, 0, 0, 1], 0).into());
    let acceptor = Acceptor::open(&endpoint, &ListenOptions::default()).expect("a listener");
    let number = acceptor.as_fd().as_raw_fd();
    close(number).expect("it is open");
    let stranger = take_number(number);
    drop(acceptor);
    assert!(fstat(&stranger).is_ok(), "the file was closed");
}

#[test]
fn what_was_adopted_is_closed_and_nothing_else() {
    let _alone = alone();
    let before = open_descriptors();
    for linger in [0, 20] {
        let mut world = World::parking_after(std::time::Duration::from_millis(linger));
        let mut clients = Vec::new();
        for round in 0..10 {
            for (_, mut client, server) in streams() {
                let record = world.serve(server, Script::echo());
                let sent = pattern(1000 * round + 1);
                assert!(world.exchange(&mut client, &sent) == sent);
                clients.push((client, record));
            }
        }
        clients.truncate(10);
        let (_client, server) = unix();
        world.serve(server, Script::refusal());
        let (_client, server) = unix();
        world.serve(server, Script::echo().on_connected(|_, _| panic!("no")));
        for (_, record) in &clients {
            world.until_quiet(record);
        }
        world.stop();
        drop(clients);
    }
    assert_eq!(open_descriptors(), before);
}

#[test]
fn what_waits_at_the_door_is_closed_with_the_engine() {
    let _alone = alone();
    let before = open_descriptors();
    let world = World::without_demultiplexer();
    let (mut client, server) = unix();
    let record = world.serve(server, Script::echo());
    drop(world);
    assert_eq!(client.read(&mut [0; 1]).expect("closed"), 0);
    assert_eq!(count(&record.connected), 0);
    drop(client);
    assert_eq!(open_descriptors(), before);
}

in_every_world! {
    guard(crate::alone());
    a_number_used_again_by_another_connection_ends_the_old_one_only,
    a_number_used_again_while_its_connection_is_paused,
    a_number_closed_in_a_callback_and_given_to_a_file_stays_with_the_file,
    a_pipe_never_writes_into_the_file_that_has_its_number_now,
    a_number_closed_from_outside_costs_one_connection,
    a_stranger_with_the_number_is_neither_ended_nor_read_at_the_close,
    a_stranger_with_the_number_is_not_watched,
    the_same_socket_under_the_same_number_is_a_new_connection,
    a_descriptor_is_served_by_one_connection_at_a_time,
    the_two_ends_of_a_pipe_are_two_descriptors,
}

fn a_number_used_again_by_another_connection_ends_the_old_one_only<D: Demultiplexer>(
    mut world: World<D>,
) {
    let (mut old_client, old_server) = unix();
    let old = world.serve(&old_server, Script::echo());
    assert_eq!(world.exchange(&mut old_client, b"hello"), b"hello");
    let number = old.descriptor().number();
    let (mut client, server) = unix();
    close(number).expect("it was open");
    let descriptor = adopt_as(number, &server);
    drop(server);
    let new = Arc::<common::Record>::default();
    world
        .door
        .hand_in(descriptor, (Script::echo(), Arc::clone(&new)))
        .unwrap_or_else(|(error, _)| panic!("{error}"));
    world.until("the loss", || old.is_lost());
    assert_eq!(old.reason(), Reason::DescriptorGone);
    for size in [1, 300_000] {
        assert!(world.exchange(&mut client, &pattern(size)) == pattern(size));
    }
    assert_eq!((count(&old.lost), count(&new.lost)), (1, 0));
    drop(client);
    world.until("the loss", || new.is_lost());
    drop(old_server);
    world.stop();
}

fn a_number_used_again_while_its_connection_is_paused<D: Demultiplexer>(mut world: World<D>) {
    let (_old_client, old_server) = unix();
    let old = world.serve(
        &old_server,
        Script::echo().on_connected(|_, _| Ok(Action::Pause)),
    );
    world.until("the connection", || count(&old.connected) == 1);
    world.until_quiet(&old);
    let number = old.descriptor().number();
    let key_of_nobody = Keys::of_nobody();
    let (mut client, server) = unix();
    // The word of the registry finds the inbox full.
    for _ in 0..5_000 {
        world.mailbox().ready(key_of_nobody, Readiness::READ);
    }
    close(number).expect("it was open");
    let descriptor = adopt_as(number, &server);
    world
        .door
        .hand_in(descriptor, (Script::echo(), Arc::default()))
        .unwrap_or_else(|(error, _)| panic!("{error}"));
    world.until("the loss", || old.is_lost());
    assert_eq!(old.reason(), Reason::DescriptorGone);
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
}

/// Finds out a key that no connection of another engine has.
#[derive(Clone, Default)]
struct Keys(Arc<Mutex<Option<reactor::Key>>>);

impl Demultiplexer for Keys {
    type Seat = ();

    fn seat(
        &mut self,
        key: reactor::Key,
        _: &Arc<Descriptor>,
        _: &Arc<reactor::Mailbox>,
    ) -> std::io::Result<()> {
        *lock(&self.0) = Some(key);
        Ok(())
    }

    fn arm(&mut self, (): &(), _: reactor::Interest) -> std::io::Result<()> {
        Ok(())
    }

    fn retire(&mut self, (): ()) {}
}

impl Keys {
    fn of_nobody() -> reactor::Key {
        let keys = Self::default();
        let mut world = World::new(64, Some(std::time::Duration::ZERO), keys.clone());
        let mut clients = Vec::new();
        // A slot that a small world never has.
        for _ in 0..20 {
            let (client, server) = unix();
            world.serve(server, Script::echo());
            clients.push(client);
        }
        let mailbox = world.mailbox();
        world.until("the parking", || mailbox.counters().parked.get() == 20);
        let key = lock(&keys.0).expect("somebody was parked");
        world.stop();
        key
    }
}

fn a_number_closed_in_a_callback_and_given_to_a_file_stays_with_the_file<D: Demultiplexer>(
    mut world: World<D>,
) {
    for action in [
        Action::ReadPending,
        Action::WritePending,
        Action::Close,
        Action::Abort,
        Action::Pause,
    ] {
        let (mut client, server) = unix();
        let taken = Arc::new(Mutex::new(None));
        let record = world.serve(
            server,
            Script::echo().on_data({
                let taken = Arc::clone(&taken);
                move |talk, descriptor| {
                    close(descriptor.number()).expect("it was open");
                    *lock(&taken) = Some(take_number(descriptor.number()));
                    talk.echo()?;
                    Ok(action)
                }
            }),
        );
        client.write_all(b"?").expect("room");
        world.until("the callback", || count(&record.readable) == 1);
        world.until_quiet(&record);
        if !record.is_lost() {
            record.resume(Action::Close);
        }
        world.until("the loss", || record.is_lost());
        let file = lock(&taken).take().expect("the callback ran");
        assert!(fstat(&file).is_ok(), "{action:?} closed a stranger");
        assert_eq!(count(&record.lost), 1, "{action:?}");
    }
}

fn a_pipe_never_writes_into_the_file_that_has_its_number_now<D: Demultiplexer>(
    mut world: World<D>,
) {
    let path = std::env::temp_dir().join(format!("reactor-file-{}", std::process::id()));
    let (_read, write) = pipe().expect("a pipe");
    let record = world.serve(
        write,
        Script::echo().on_room({
            let path = path.clone();
            move |talk, descriptor| {
                let file = File::create(&path).expect("a file");
                close(descriptor.number()).expect("it was open");
                let file = duplicate_as(descriptor.number(), &file);
                talk.outbox.push_back(b"secret".to_vec());
                let verdict = talk.write(descriptor);
                drop(file);
                verdict
            }
        }),
    );
    world.until("the connection", || count(&record.connected) == 1);
    world.until_quiet(&record);
    record.resume(Action::WritePending);
    world.until("the loss", || record.is_lost());
    assert_eq!(record.reason(), Reason::DescriptorGone);
    let written = std::fs::read(&path).expect("the file");
    std::fs::remove_file(&path).expect("the file");
    assert_eq!(written, b"");
}

fn a_number_closed_from_outside_costs_one_connection<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = unix();
    let bystander = world.serve(server, Script::echo());
    let (mut gone_client, server) = unix();
    let gone = world.serve(server, Script::echo());
    assert_eq!(world.exchange(&mut gone_client, b"hello"), b"hello");
    close(gone.descriptor().number()).expect("it was open");
    gone.resume(Action::WritePending);
    world.until_quiet(&gone);
    if !gone.is_lost() {
        gone.resume(Action::Close);
    }
    world.until("the loss", || gone.is_lost());
    assert_eq!(count(&gone.lost), 1);
    assert_eq!(world.exchange(&mut client, b"well?"), b"well?");
    assert_eq!(count(&bystander.lost), 0);
}

fn a_stranger_with_the_number_is_neither_ended_nor_read_at_the_close<D: Demultiplexer>(
    mut world: World<D>,
) {
    let (mut client, server) = tcp();
    let (mut stranger_client, stranger) = tcp();
    stranger_client
        .write_all(b"for the stranger")
        .expect("room");
    let stranger: Arc<Mutex<Option<TcpStream>>> = Arc::new(Mutex::new(Some(stranger)));
    // More than one read takes: the close has something to throw away.
    client.write_all(&pattern(200_000)).expect("room");
    let record = world.serve(
        server,
        Script::echo().on_data({
            let stranger = Arc::clone(&stranger);
            move |_, descriptor| {
                close(descriptor.number()).expect("it was open");
                let old = lock(&stranger).take().expect("once");
                *lock(&stranger) = Some(duplicate_as(descriptor.number(), &old).into());
                Ok(Action::Close)
            }
        }),
    );
    world.until("the loss", || record.is_lost());
    let mut stranger = lock(&stranger).take().expect("the callback ran");
    let mut heard = [0; 16];
    stranger
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout");
    stranger.read_exact(&mut heard).expect("all of it");
    assert_eq!(&heard, b"for the stranger");
    stranger.write_all(b"answer").expect("it was not shut down");
    let mut answer = [0; 6];
    stranger_client.set_nonblocking(false).expect("blocking");
    stranger_client.read_exact(&mut answer).expect("the answer");
}

fn a_stranger_with_the_number_is_not_watched<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = unix();
    let (mut stranger_client, stranger) = unix();
    let moved = Arc::new(Mutex::new(None));
    let record = world.serve(
        server,
        Script::echo().on_data({
            let moved = Arc::clone(&moved);
            move |_, descriptor| {
                close(descriptor.number()).expect("it was open");
                *lock(&moved) = Some(duplicate_as(descriptor.number(), &stranger));
                Ok(Action::ReadPending)
            }
        }),
    );
    client.write_all(b"?").expect("room");
    world.until("the callback", || count(&record.readable) == 1);
    stranger_client
        .write_all(b"for the stranger")
        .expect("room");
    world.until_quiet(&record);
    assert_eq!(count(&record.readable), 1);
    let moved = lock(&moved).take().expect("the callback ran");
    let mut stranger = UnixStream::from(moved);
    stranger.set_nonblocking(true).expect("non-blocking");
    let mut heard = [0; 16];
    stranger.read_exact(&mut heard).expect("all of it");
    assert_eq!(&heard, b"for the stranger");
}

fn the_same_socket_under_the_same_number_is_a_new_connection<D: Demultiplexer>(
    mut world: World<D>,
) {
    let (mut client, server) = unix();
    let old = world.serve(&server, Script::echo());
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    world.until_quiet(&old);
    let number = old.descriptor().number();
    close(number).expect("it was open");
    let descriptor = adopt_as(number, &server);
    let new = Arc::<common::Record>::default();
    world
        .door
        .hand_in(descriptor, (Script::echo(), Arc::clone(&new)))
        .unwrap_or_else(|(error, _)| panic!("{error}"));
    world.until("the loss", || old.is_lost());
    assert_eq!(world.exchange(&mut client, b"again"), b"again");
    assert_eq!(count(&new.lost), 0);
    assert_eq!(inode(&kernels(&new.descriptor())), inode(&server));
}

fn a_descriptor_is_served_by_one_connection_at_a_time<D: Demultiplexer>(mut world: World<D>) {
    for (_, mut client, server) in streams() {
        let again = server.try_clone().expect("a duplicate");
        let record = world.serve(&server, Script::echo());
        world.until("the connection", || count(&record.connected) == 1);
        let own = record.descriptor();
        for number in [server.as_fd(), again.as_fd(), kernels(&own)] {
            let refused = Descriptor::adopt(number).err();
            assert_eq!(refused, Some(AdoptError::AlreadyServed));
        }
        drop((server, own));
        assert_eq!(world.exchange(&mut client, b"alone"), b"alone");
        record.resume(Action::Abort);
        world.until("the loss", || record.is_lost());
        // Its end, not ours: the socket itself lives on in the duplicate.
        let next = world.serve(again, Script::echo());
        assert_eq!(world.exchange(&mut client, b"again"), b"again");
        drop(client);
        world.until("the loss", || next.is_lost());
        assert_eq!((count(&record.lost), count(&next.lost)), (1, 1));
    }
}

fn the_two_ends_of_a_pipe_are_two_descriptors<D: Demultiplexer>(_: World<D>) {
    let (reader, writer) = pipe().expect("a pipe");
    let ends = [&reader, &writer].map(|end| Descriptor::adopt(end.as_fd()).expect("it is free"));
    for end in &ends {
        let own = end.fd().expect("it is the kernel's");
        assert_eq!(
            Descriptor::adopt(own).err(),
            Some(AdoptError::AlreadyServed)
        );
    }
}
