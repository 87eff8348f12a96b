//! The plain limit: a level-triggered epoll echo server on one thread, with nothing around it.
//!
//! Prints `listening PORT` and echoes until it is killed.

#![deny(unsafe_code)]

use std::collections::HashMap;
use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The same as the other servers of this benchmark.
const BACKLOG: i32 = 1024;
const READ_BYTES: usize = 64 * 1024;

fn main() -> Result<()> {
    let listener = listener()?;
    println!("listening {}", listener.local_addr()?.port());
    serve(&listener)
}

/// The standard library's listener has a backlog of its own choice, so this one is made by hand.
fn listener() -> Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(socket))
}

struct Peer {
    socket: TcpStream,
    unsent: Vec<u8>,
}

fn serve(listener: &TcpListener) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let listener_key = listener.as_raw_fd() as u64;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, listener_key))?;
    let mut peers: HashMap<u64, Peer> = HashMap::new();
    let mut events = vec![EpollEvent::empty(); 1024];
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..ready] {
            let key = event.data();
            if key == listener_key {
                accept(listener, &epoll, &mut peers)?;
            } else if let Some(peer) = peers.get_mut(&key)
                && !peer.turn(&epoll, key, &mut buffer)
            {
                peers.remove(&key);
            }
        }
    }
}

fn accept(listener: &TcpListener, epoll: &Epoll, peers: &mut HashMap<u64, Peer>) -> Result<()> {
    loop {
        let (socket, _): (TcpStream, SocketAddr) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error.into()),
        };
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let key = socket.as_raw_fd() as u64;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
        let unsent = Vec::new();
        peers.insert(key, Peer { socket, unsent });
    }
}

impl Peer {
    /// False when the connection is over: end of stream or an error.
    fn turn(&mut self, epoll: &Epoll, key: u64, buffer: &mut [u8]) -> bool {
        let backlogged = !self.unsent.is_empty();
        if backlogged {
            let unsent = std::mem::take(&mut self.unsent);
            if !self.send(&unsent) {
                return false;
            }
        } else {
            match (&self.socket).read(buffer) {
                Ok(0) => return false,
                Ok(got) if !self.send(&buffer[..got]) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        if backlogged == self.unsent.is_empty() {
            return self.change_interest(epoll, key);
        }
        true
    }

    /// Sends what the kernel takes and keeps the rest.
    fn send(&mut self, bytes: &[u8]) -> bool {
        match (&self.socket).write(bytes) {
            Ok(taken) => self.unsent.extend_from_slice(&bytes[taken..]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.unsent.extend_from_slice(bytes);
            }
            Err(_) => return false,
        }
        true
    }

    /// With something unsent nothing more is read: the peer has to take its echo first.
    fn change_interest(&self, epoll: &Epoll, key: u64) -> bool {
        let flags = if self.unsent.is_empty() {
            EpollFlags::EPOLLIN
        } else {
            EpollFlags::EPOLLOUT
        };
        let mut event = EpollEvent::new(flags, key);
        epoll.modify(&self.socket, &mut event).is_ok()
    }
}
