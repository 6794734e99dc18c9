//! A node's gRPC stream, with as little around it as can be: the nodes run on the CPUs that are measured.
//! Does IO.
//!
//! HTTP/2's frames are told apart by hand. A node opens its windows so wide that they last, and says less
//! than the controller's take.

use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use durward_proto::wire::{FromNode, ToNode, to_node};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PATH: &str = "/durward.v1.Control/Subscribe";
/// The one stream.
const STREAM: u32 = 1;
const FRAME_HEADER: usize = 9;
/// Whether a gRPC message is compressed, and its length.
const MESSAGE_HEADER: usize = 5;
/// What fits is read at once.
const ROOM: usize = 4 << 10;

const MAX_WINDOW: u32 = i32::MAX as u32;
const FIRST_WINDOW: u32 = 65_535;
const INITIAL_WINDOW_SIZE: u16 = 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// Of SETTINGS and PING.
const ACK: u8 = 1;
/// Of HEADERS and DATA.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// A stream that is open.
pub(crate) struct Connection {
    socket: TcpStream,
    /// What was read and is no whole frame yet.
    read: BytesMut,
    /// What frames carried and is no whole message yet.
    carried: BytesMut,
}

struct Frame {
    kind: u8,
    flags: u8,
    payload: Bytes,
}

impl Connection {
    pub(crate) async fn open(controller: SocketAddr) -> Self {
        let socket = TcpStream::connect(controller).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut this = Self { socket, read: BytesMut::new(), carried: BytesMut::new() };
        let mut hello = BytesMut::from(PREFACE);
        let mut window = BytesMut::new();
        window.put_u16(INITIAL_WINDOW_SIZE);
        window.put_u32(MAX_WINDOW);
        put_frame(&mut hello, SETTINGS, 0, 0, &window);
        put_frame(&mut hello, WINDOW_UPDATE, 0, 0, &(MAX_WINDOW - FIRST_WINDOW).to_be_bytes());
        put_frame(&mut hello, HEADERS, END_HEADERS, STREAM, &headers(&controller.to_string()));
        this.socket.write_all(&hello).await.unwrap();
        this
    }

    pub(crate) async fn say(&mut self, message: FromNode) {
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.encoded_len()).unwrap());
        message.encode(&mut body).unwrap();
        self.send(DATA, 0, STREAM, &body).await;
    }

    /// The next message; none if the controller ends the stream.
    pub(crate) async fn hear(&mut self) -> Option<to_node::Message> {
        loop {
            if let Some(message) = self.message() {
                return Some(message);
            }
            let Frame { kind, flags, payload } = self.frame().await;
            match kind {
                DATA | HEADERS if flags & END_STREAM != 0 => return None,
                DATA => {
                    assert_eq!(flags & PADDED, 0, "the controller pads no frames");
                    self.carried.extend_from_slice(&payload);
                }
                SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await,
                PING if flags & ACK == 0 => self.send(PING, ACK, 0, &payload).await,
                RST_STREAM | GOAWAY => return None,
                _ => {}
            }
        }
    }

    fn message(&mut self) -> Option<to_node::Message> {
        let mut header = self.carried.get(..MESSAGE_HEADER)?;
        assert_eq!(header.get_u8(), 0, "nothing is compressed");
        let whole = MESSAGE_HEADER + header.get_u32() as usize;
        if self.carried.len() < whole {
            return None;
        }
        let message = self.carried.split_to(whole).freeze().slice(MESSAGE_HEADER..);
        Some(ToNode::decode(message).unwrap().message.unwrap())
    }

    async fn frame(&mut self) -> Frame {
        loop {
            if let Some(mut header) = self.read.get(..FRAME_HEADER) {
                let length = header.get_uint(3) as usize;
                let (kind, flags) = (header.get_u8(), header.get_u8());
                if self.read.len() >= FRAME_HEADER + length {
                    let payload = self.read.split_to(FRAME_HEADER + length).freeze().slice(FRAME_HEADER..);
                    return Frame { kind, flags, payload };
                }
            }
            self.read.reserve(ROOM);
            let read = self.socket.read_buf(&mut self.read).await.unwrap();
            assert!(read > 0, "the controller closed a connection");
        }
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = BytesMut::new();
        put_frame(&mut frame, kind, flags, stream, payload);
        self.socket.write_all(&frame).await.unwrap();
    }
}

fn put_frame(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.put_uint(payload.len() as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    out.put_slice(payload);
}

/// The request's headers: the first two are in HPACK's table, and so are the names of the next three.
fn headers(authority: &str) -> BytesMut {
    const POST: u8 = 0x83;
    const HTTP: u8 = 0x86;
    let mut out = BytesMut::from(&[POST, HTTP][..]);
    let mut put = |name: &[u8], value: &str| {
        out.put_slice(name);
        out.put_u8(u8::try_from(value.len()).unwrap());
        out.put_slice(value.as_bytes());
    };
    put(&[0x04], PATH);
    put(&[0x01], authority);
    put(&[0x0f, 0x10], "application/grpc");
    put(b"\x00\x02te", "trailers");
    out
}
