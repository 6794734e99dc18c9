//! One connection by a real socket, and what became of it (IO).

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{interval, timeout},
};

/// How long a probe waits for any answer. It never decides a test alone: a matrix is tried again until it holds.
const SILENCE: Duration = Duration::from_secs(3);

/// What a probe talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// A connection, and one byte that is echoed.
    Tcp,
    /// A datagram that is echoed.
    Udp,
    /// An ICMP or ICMPv6 echo request that is answered: a ping. The port means nothing.
    Icmp,
}

/// A question: can this be reached?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// By which protocol.
    pub protocol: Protocol,
    /// Which address and port.
    pub target: SocketAddr,
}

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer came.
    Allowed,
    /// Nothing came: packets are dropped.
    Denied,
    /// The other side said that nobody listens.
    Refused,
    /// Something else, as the socket says it.
    Failed(String),
}

impl Probe {
    /// Makes the connection, from the calling thread's network namespace.
    pub async fn outcome(self) -> Outcome {
        self.outcome_within(SILENCE).await
    }

    /// The same, where this much silence counts as denied.
    pub async fn outcome_within(self, silence: Duration) -> Outcome {
        let attempt = async {
            match self.protocol {
                Protocol::Tcp => tcp(self.target).await,
                Protocol::Udp => udp(self.target).await,
                Protocol::Icmp => ping(self.target.ip()).await,
            }
        };
        match timeout(silence, attempt).await {
            Ok(Ok(())) => Outcome::Allowed,
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Outcome::Refused,
            Ok(Err(error)) => Outcome::Failed(error.to_string()),
            Err(_) => Outcome::Denied,
        }
    }
}

async fn tcp(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(b"?").await?;
    stream.read_exact(&mut [0]).await.map(drop)
}

async fn udp(target: SocketAddr) -> std::io::Result<()> {
    let any =
        if target.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(target).await?;
    exchange(&socket, b"?").await
}

/// By a socket that the kernel lets ping and nothing else: it fills in identifier and checksum, and hands in the answers
/// to these requests only.
async fn ping(target: IpAddr) -> std::io::Result<()> {
    let (family, protocol, request) = match target {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Datagram, flags, protocol)?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect((target, 0)).await?;
    exchange(&socket, &[request, 0, 0, 0, 0, 0, 0, 1]).await
}

/// Asks until there is an answer: a packet may get lost for other reasons than a verdict.
async fn exchange(socket: &UdpSocket, question: &[u8]) -> std::io::Result<()> {
    let mut again = interval(Duration::from_millis(500));
    let mut answer = [0; 8];
    loop {
        tokio::select! {
            _ = again.tick() => drop(socket.send(question).await?),
            received = socket.recv(&mut answer) => return received.map(drop),
        }
    }
}
