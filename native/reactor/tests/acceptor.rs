//! Listening sockets: what they accept, what they share, and what they leave behind.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use reactor::{Accepted, Acceptor, Address, Endpoint, Kind, ListenOptions};

fn tcp(address: &str) -> Endpoint {
    Endpoint::Tcp(address.parse().expect("an address"))
}

fn open(endpoint: &Endpoint) -> Acceptor {
    Acceptor::open(endpoint, &ListenOptions::default()).expect("an acceptor")
}

fn refusal(endpoint: &Endpoint) -> ErrorKind {
    match Acceptor::open(endpoint, &ListenOptions::default()) {
        Err(error) => error.kind(),
        Ok(acceptor) => panic!("{acceptor:?} listens"),
    }
}

fn address(acceptor: &Acceptor) -> SocketAddr {
    match acceptor.address().expect("an address") {
        Address::Inet(address) => address,
        Address::Unix(path) => panic!("{path:?} is no TCP address"),
    }
}

/// The next connection, which is on its way or there.
fn next(acceptor: &Acceptor) -> (OwnedFd, Option<Address>) {
    let mut asked = [PollFd::new(acceptor.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::from(10_000_u16)).expect("poll");
    match acceptor.accept() {
        Accepted::Connection(connection, peer) => (connection, peer),
        other => panic!("{other:?} instead of a connection"),
    }
}

fn is_empty(acceptor: &Acceptor) -> bool {
    matches!(acceptor.accept(), Accepted::Empty)
}

fn is_shut(acceptor: &Acceptor) -> bool {
    matches!(acceptor.accept(), Accepted::Failed(Errno::EINVAL))
}

/// A path of its own for each test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("acceptor_{}_{test}", std::process::id()));
        fs::create_dir(&path).expect("a new folder");
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_connection_comes_with_its_peer() {
    for (any, kind) in [("127.0.0.1:0", Kind::Tcp), ("[::1]:0", Kind::Tcp)] {
        let acceptor = open(&tcp(any));
        assert_eq!(acceptor.kind(), kind);
        assert!(!acceptor.is_ready());
        assert!(is_empty(&acceptor));
        let mut client = TcpStream::connect(address(&acceptor)).expect("a connection");
        let (server, peer) = next(&acceptor);
        let local = client.local_addr().expect("an address");
        assert_eq!(peer, Some(Address::Inet(local)));
        TcpStream::from(server)
            .write_all(b"hello")
            .expect("room for five bytes");
        let mut heard = [0; 5];
        client.read_exact(&mut heard).expect("five bytes");
        assert_eq!(&heard, b"hello");
        assert!(is_empty(&acceptor));
    }
}

#[test]
fn what_is_accepted_does_not_block_and_closes_on_exec() {
    let folder = Folder::new("flags");
    let [inet, unix] = [open(&tcp("127.0.0.1:0")), open(&folder.endpoint())];
    let _clients = (
        TcpStream::connect(address(&inet)).expect("a connection"),
        UnixStream::connect(folder.socket()).expect("a connection"),
    );
    let flags = |fd: &dyn AsFd| {
        let descriptor = fcntl(fd.as_fd(), FcntlArg::F_GETFD).expect("flags");
        let file = fcntl(fd.as_fd(), FcntlArg::F_GETFL).expect("flags");
        (
            FdFlag::from_bits_retain(descriptor).contains(FdFlag::FD_CLOEXEC),
            OFlag::from_bits_retain(file).contains(OFlag::O_NONBLOCK),
        )
    };
    for acceptor in [&inet, &unix] {
        let duplicate = acceptor.duplicate().expect("a duplicate");
        let (connection, _) = next(acceptor);
        assert_eq!(flags(acceptor), (true, true));
        assert_eq!(flags(&duplicate), (true, true));
        assert_eq!(flags(&connection), (true, true));
    }
}

#[test]
fn connections_inherit_nodelay() {
    for nodelay in [true, false] {
        let options = ListenOptions {
            nodelay,
            ..ListenOptions::default()
        };
        let acceptor = Acceptor::open(&tcp("127.0.0.1:0"), &options).expect("an acceptor");
        let _client = TcpStream::connect(address(&acceptor)).expect("a connection");
        let (connection, _) = next(&acceptor);
        assert_eq!(getsockopt(&connection, sockopt::TcpNoDelay), Ok(nodelay));
    }
}

#[test]
fn a_port_in_use_is_refused_unless_it_is_shared() {
    let acceptor = open(&tcp("127.0.0.1:0"));
    let same = Endpoint::Tcp(address(&acceptor));
    assert_eq!(refusal(&same), ErrorKind::AddrInUse);
    let shared = ListenOptions {
        reuseport: true,
        ..ListenOptions::default()
    };
    assert!(Acceptor::open(&same, &shared).is_err());
    drop(acceptor);
    let one = Acceptor::open(&same, &shared).expect("an acceptor");
    let other = Acceptor::open(&same, &shared).expect("another acceptor");
    assert_eq!(address(&one), address(&other));
}

#[test]
fn a_port_is_free_again_though_connections_live_on() {
    let acceptor = open(&tcp("127.0.0.1:0"));
    let same = Endpoint::Tcp(address(&acceptor));
    let _client = TcpStream::connect(address(&acceptor)).expect("a connection");
    let _server = next(&acceptor);
    drop(acceptor);
    for _ in 0..100 {
        drop(open(&same));
    }
}

#[test]
fn shut_ends_every_duplicate() {
    let folder = Folder::new("shut");
    for endpoint in [tcp("127.0.0.1:0"), folder.endpoint()] {
        let acceptor = open(&endpoint);
        let duplicate = acceptor.duplicate().expect("a duplicate");
        assert!(is_empty(&duplicate));
        acceptor.shut();
        acceptor.shut();
        // Who waits is woken.
        let mut asked = [PollFd::new(duplicate.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut asked, PollTimeout::ZERO), Ok(1));
        assert!(duplicate.is_ready(), "there is something to learn");
        assert!(is_shut(&duplicate));
        assert!(is_shut(&acceptor));
    }
}

#[test]
fn a_port_can_be_opened_again_while_shut_duplicates_are_open() {
    let acceptor = open(&tcp("127.0.0.1:0"));
    let reached = address(&acceptor);
    let duplicate = acceptor.duplicate().expect("a duplicate");
    acceptor.shut();
    drop(acceptor);
    assert!(TcpStream::connect(reached).is_err());
    let again = open(&Endpoint::Tcp(reached));
    let _client = TcpStream::connect(reached).expect("a connection");
    let _server = next(&again);
    assert!(is_shut(&duplicate));
}

#[test]
fn an_address_that_is_not_ours_is_refused() {
    assert_eq!(
        refusal(&tcp("192.0.2.1:0")),
        ErrorKind::AddrNotAvailable,
        "TEST-NET-1 belongs to nobody"
    );
}

#[test]
fn connections_that_were_reset_in_the_backlog_are_no_failure() {
    let acceptor = open(&tcp("127.0.0.1:0"));
    for _ in 0..10 {
        let client = TcpStream::connect(address(&acceptor)).expect("a connection");
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&client, sockopt::Linger, &linger).expect("linger");
    }
    let _client = TcpStream::connect(address(&acceptor)).expect("a connection");
    loop {
        match acceptor.accept() {
            Accepted::Connection(..) => {}
            Accepted::Empty => break,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_unix_socket_is_removed_with_its_acceptor() {
    let folder = Folder::new("removed");
    let acceptor = open(&folder.endpoint());
    assert_eq!(acceptor.kind(), Kind::UnixStream);
    assert_eq!(
        acceptor.address().expect("an address"),
        Address::Unix(folder.socket())
    );
    let duplicate = acceptor.duplicate().expect("a duplicate");
    let _client = UnixStream::connect(folder.socket()).expect("a connection");
    assert!(next(&duplicate).1.is_none(), "the client has no name");
    drop(duplicate);
    assert!(folder.socket().exists());
    drop(acceptor);
    assert!(!folder.socket().exists());
}

#[test]
fn the_socket_of_somebody_else_is_not_removed() {
    let folder = Folder::new("somebody");
    let acceptor = open(&folder.endpoint());
    fs::remove_file(folder.socket()).expect("the file is there");
    let _somebody = UnixListener::bind(folder.socket()).expect("the path is free");
    drop(acceptor);
    assert!(folder.socket().exists());
    UnixStream::connect(folder.socket()).expect("it is reached");
}

#[test]
fn an_abandoned_socket_is_replaced_and_a_living_one_is_not() {
    let folder = Folder::new("abandoned");
    let living = UnixListener::bind(folder.socket()).expect("the path is free");
    assert_eq!(refusal(&folder.endpoint()), ErrorKind::AddrInUse);
    drop(living);
    assert!(folder.socket().exists());
    let acceptor = open(&folder.endpoint());
    let _client = UnixStream::connect(folder.socket()).expect("a connection");
    next(&acceptor);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let folder = Folder::new("file");
    fs::write(folder.socket(), "precious").expect("a file");
    assert_eq!(refusal(&folder.endpoint()), ErrorKind::AddrInUse);
    assert_eq!(
        fs::read_to_string(folder.socket()).expect("the file"),
        "precious"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn an_abstract_name_is_no_file() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("acceptor_{}", std::process::id());
    let endpoint = Endpoint::Unix(PathBuf::from(format!("\0{name}")));
    let acceptor = open(&endpoint);
    assert_eq!(refusal(&endpoint), ErrorKind::AddrInUse);
    let Ok(Address::Unix(path)) = acceptor.address() else {
        panic!("no Unix address");
    };
    assert_eq!(Endpoint::Unix(path), endpoint);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let _client = UnixStream::connect_addr(&address).expect("a connection");
    next(&acceptor);
    drop(acceptor);
    open(&endpoint);
}

#[test]
fn a_path_that_cannot_be_is_refused() {
    let long = Endpoint::Unix(PathBuf::from("x".repeat(200)));
    assert!(Acceptor::open(&long, &ListenOptions::default()).is_err());
    let nowhere = Endpoint::Unix(PathBuf::from("/no/such/folder/socket"));
    assert_eq!(refusal(&nowhere), ErrorKind::NotFound);
}

#[test]
fn without_descriptors_it_is_exhausted() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // In a process of its own: the limit holds for every test of this one.
    if std::env::var_os("ACCEPTOR_CHILD").is_none() {
        let child = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "without_descriptors_it_is_exhausted"])
            .env("ACCEPTOR_CHILD", "yes")
            .output()
            .expect("a child");
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stdout)
        );
        return;
    }
    let acceptor = open(&tcp("127.0.0.1:0"));
    let _client = TcpStream::connect(address(&acceptor)).expect("a connection");
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).expect("a lower limit");
    let short = acceptor.accept();
    // That somebody waits can be seen without a descriptor.
    assert!(acceptor.is_ready());
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("the old limit");
    assert!(
        matches!(short, Accepted::Exhausted(Errno::EMFILE)),
        "{short:?}"
    );
    next(&acceptor);
}
