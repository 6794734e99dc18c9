//! Connections: listing, purging, and settling what their log owes. IO.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::abi::{self, Plain};
use crate::{Act, DataPath, Direction, MapError, Word};

/// Names a connection of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey(pub(crate) abi::ctk);

impl ConnectionKey {
    /// The interface that it belongs to.
    pub fn ifindex(&self) -> u32 {
        self.0.if_proto >> 8
    }

    /// The protocol's IANA number.
    pub fn protocol(&self) -> u8 {
        self.0.if_proto as u8
    }

    /// The pod's side. Port 0 where the protocol has none; an ICMP echo's id.
    pub fn local(&self) -> SocketAddr {
        (IpAddr::from(self.0.local), u16::from_be(self.0.lport)).into()
    }

    /// The other side.
    pub fn remote(&self) -> SocketAddr {
        (IpAddr::from(self.0.remote), u16::from_be(self.0.rport)).into()
    }
}

/// A connection, as it was when it was read.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Its name.
    pub key: ConnectionKey,
    value: abi::ctv,
}

impl Connection {
    /// What was said of it.
    pub fn act(&self) -> Act {
        Act::of(self.value.act)
    }

    /// Whose rules count for it.
    pub fn opener(&self) -> Direction {
        Direction::of(self.value.opener)
    }

    /// The word it was judged under.
    pub fn word(&self) -> Word {
        Word::of(self.value.word)
    }

    /// Whether it was cut: the rules no longer allow it.
    pub fn cut(&self) -> bool {
        self.value.word & crate::CUT != 0
    }

    /// Whether it is between the pod and its own node.
    pub fn host(&self) -> bool {
        u32::from(self.value.flags) & abi::CT_HOST != 0
    }

    /// Whether it was there before us.
    pub fn adopted(&self) -> bool {
        u32::from(self.value.flags) & abi::CT_ADOPTED != 0
    }

    /// Whether a record is due that could not be written: see [`DataPath::settle`].
    pub fn owes_record(&self) -> bool {
        self.value.owed != 0
    }

    pub(crate) fn state(&self) -> &'static str {
        match u32::from(self.value.state) {
            s if s == abi::CT_TCP_NEW => "new",
            s if s == abi::CT_TCP_OPEN => "open",
            s if s == abi::CT_TCP_HALF => "half-closed",
            s if s == abi::CT_TCP_CLOSED => "closed",
            s if s == abi::CT_UDP_ONE => "unanswered",
            s if s == abi::CT_UDP_TWO => "answered",
            _ => "tracked",
        }
    }
}

/// All connections, read in batches. One that comes or goes meanwhile may be missed.
pub struct Connections<'a> {
    map: BorrowedFd<'a>,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// How many of the batch there are, and which is next.
    count: usize,
    at: usize,
    /// Where the next batch starts; none at first.
    place: Option<u32>,
    last: bool,
    now: u32,
    timing: abi::timing,
}

impl Iterator for Connections<'_> {
    type Item = Result<Connection, MapError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at == self.count {
            if self.last {
                return None;
            }
            if let Err(source) = self.read_batch() {
                self.last = true;
                return Some(Err(MapError::Map { map: "ct", source }));
            }
        }
        let (key, value) = (size_of::<abi::ctk>() * self.at, size_of::<abi::ctv>() * self.at);
        self.at += 1;
        let key = abi::ctk::from_bytes(&self.keys[key..key + size_of::<abi::ctk>()]);
        let value = abi::ctv::from_bytes(&self.values[value..value + size_of::<abi::ctv>()]);
        Some(Ok(Connection { key: ConnectionKey(key), value }))
    }
}

impl Connections<'_> {
    /// Reads the next batch. It may be short without being the last: the kernel never divides a bucket. So only
    /// `ENOENT` ends the listing (libbpf-rs' own iterator ends at a short batch, and misses what follows).
    fn read_batch(&mut self) -> std::io::Result<()> {
        let mut next = 0_u32;
        let mut count = BATCH;
        let place = self.place.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut);
        let options = libbpf_sys::bpf_map_batch_opts {
            sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as _,
            ..Default::default()
        };
        // SAFETY: the map is open; a hash's place is 32 bits; the buffers hold `BATCH` keys and values.
        let returned = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                self.map.as_raw_fd(),
                place.cast(),
                std::ptr::from_mut(&mut next).cast(),
                self.keys.as_mut_ptr().cast(),
                self.values.as_mut_ptr().cast(),
                &mut count,
                &options,
            )
        };
        self.last = -returned == libc::ENOENT;
        if returned < 0 && !self.last {
            return Err(std::io::Error::from_raw_os_error(-returned));
        }
        (self.count, self.at, self.place) = (count as usize, 0, Some(next));
        Ok(())
    }

    /// Whether a connection has been silent for longer than its protocol and state allow. The programs judge
    /// the same by themselves: to delete such entries only frees their places.
    pub fn expired(&self, connection: &Connection) -> bool {
        let silent = self.now.wrapping_sub(connection.value.seen).cast_signed();
        let state = usize::from(connection.value.state) % self.timing.timeout.len();
        silent > self.timing.timeout[state].cast_signed()
    }
}

/// How many entries one system call moves.
const BATCH: u32 = 4096;

impl DataPath {
    /// All connections.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn connections(&self) -> Result<Connections<'_>, MapError> {
        let now = self.clock()?.jiffies as u32;
        Ok(Connections {
            map: self.tables.ct.map.as_fd(),
            keys: vec![0; size_of::<abi::ctk>() * BATCH as usize],
            values: vec![0; size_of::<abi::ctv>() * BATCH as usize],
            count: 0,
            at: 0,
            place: None,
            last: false,
            now,
            timing: self.timing,
        })
    }

    /// Forgets connections; how many there were. Their next packet is judged as one in mid-flow.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn forget(&self, keys: impl IntoIterator<Item = ConnectionKey>) -> Result<usize, MapError> {
        keys.into_iter().try_fold(0, |count, key| Ok(count + usize::from(self.tables.ct.remove(&key.0)?)))
    }

    /// Deletes what has expired, and what belongs to interfaces that `keep` refuses; how many. Settles what
    /// live connections owe to the log on the way.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn sweep_connections(&self, keep: impl Fn(u32) -> bool) -> Result<usize, MapError> {
        let mut all = self.connections()?;
        let (mut gone, mut owing) = (Vec::new(), Vec::new());
        // Listed first: to delete while listing would skip others.
        while let Some(connection) = all.next() {
            let connection = connection?;
            if connection.owes_record() {
                owing.push(connection.key);
            } else if all.expired(&connection) || !keep(connection.key.ifindex()) {
                gone.push(connection.key);
            }
        }
        for key in owing {
            self.settle(key)?;
        }
        self.forget(gone)
    }

    /// Tries again to write the record that a connection owes; whether it owes none any more.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn settle(&self, key: ConnectionKey) -> Result<bool, MapError> {
        let mut context = key.0.bytes().to_vec();
        Ok(self.run("settle", &mut context)? == 0)
    }
}
