//! Connections, and those who serve them, in network namespaces. IO.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use nix::sys::time::TimeVal;

use super::PATIENCE;

/// How long a packet is waited for that should not come, with all its retransmissions. One that should come
/// has [`PATIENCE`].
const ROUND_TRIP: Duration = Duration::from_secs(4);

/// Runs something on a thread in a network namespace; sockets that it makes stay there.
pub fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(namespace).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Echoes on every connection to a port in a namespace.
pub fn serve(namespace: &Path, port: u16) {
    let listener = inside(namespace, || TcpListener::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

/// An established TCP connection to a [`serve`]d port.
#[derive(Debug)]
pub struct Connection(TcpStream);

impl Connection {
    /// One that should come about: the first attempt does, however often the kernel has to repeat it.
    pub fn must_open(namespace: &Path, to: IpAddr, port: u16) -> Self {
        match inside(namespace, || TcpStream::connect_timeout(&(to, port).into(), PATIENCE)) {
            Ok(stream) => Self(stream),
            Err(error) => panic!("no connection from {} to {to}:{port}: {error}", namespace.display()),
        }
    }

    /// A byte comes back.
    pub fn must_echo(&mut self) {
        let echoed = self.echoes_within(PATIENCE);
        assert!(echoed.is_ok(), "no echo on {:?}: {echoed:?}", self.0);
    }

    /// Whether a byte comes back; where it should, [`Connection::must_echo`].
    pub fn echoes(&mut self) -> bool {
        self.echoes_within(ROUND_TRIP).is_ok()
    }

    fn echoes_within(&mut self, wait: Duration) -> std::io::Result<()> {
        self.0.set_read_timeout(Some(wait))?;
        self.0.write_all(b"x")?;
        self.0.read_exact(&mut [0])
    }
}

/// Whether a new connection comes about; where it should, [`Connection::must_open`].
pub fn connects(namespace: &Path, source: IpAddr, to: IpAddr, port: u16) -> bool {
    inside(namespace, || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let source = SockaddrStorage::from(SocketAddr::new(source, 0));
        socket::bind(socket.as_raw_fd(), &source).unwrap();
        let wait = TimeVal::new(ROUND_TRIP.as_secs().cast_signed(), 0);
        socket::setsockopt(&socket, sockopt::SendTimeout, &wait).unwrap();
        socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, port))).is_ok()
    })
}
