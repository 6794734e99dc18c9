//! An echo server inside a pod or host, TCP and UDP, IPv4 and IPv6 (IO).

use std::{net::Ipv6Addr, thread, thread::JoinHandle};

use tokio::{
    net::{TcpListener, UdpSocket},
    sync::oneshot,
};

use crate::{Namespaces, Result, error::Named};

/// Sends back what it receives, until it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a port of these namespaces.
    pub fn start(network: &Namespaces, port: u16) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let network = network.try_clone()?;
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let listen = || {
                network.enter()?;
                let builder = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = builder.named("starting a runtime")?;
                let what = |protocol| format!("listening on {protocol} port {port}");
                let any = (Ipv6Addr::UNSPECIFIED, port);
                let tcp = runtime.block_on(TcpListener::bind(any)).named(what("TCP"))?;
                let udp = runtime.block_on(UdpSocket::bind(any)).named(what("UDP"))?;
                Ok((runtime, tcp, udp))
            };
            match listen() {
                Err(error) => drop(ready.send(Err(error))),
                Ok((runtime, tcp, udp)) => {
                    drop(ready.send(Ok(())));
                    runtime.block_on(async {
                        tokio::select! { _ = stopped => (), () = connections(tcp) => (), () = datagrams(udp) => () }
                    });
                }
            }
        });
        let server = Self { stop: Some(stop), thread: Some(thread) };
        listening.recv().map_err(std::io::Error::other).named("starting a server")??;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn connections(listener: TcpListener) {
    loop {
        // A connection that ends before it is accepted is not the server's fault.
        if let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    }
}

async fn datagrams(socket: UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // Errors are earlier datagrams' (an answer that met a closed port).
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    }
}
