//! The controller's program, started where the API server is reached, and what the kernel says of it (IO).

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::{Child, Command},
    time::{Duration, Instant},
};

use durward_e2e::{Bed, PATIENCE};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::node::Node;

const POLL: Duration = Duration::from_millis(5);

/// A daemon that runs; it ends with this.
pub(crate) struct Daemon {
    child: Child,
    began: Instant,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Daemon {
    pub(crate) fn start(bed: &Bed) -> Self {
        let program = std::env::var("DURWARD_CONTROLLER").expect("DURWARD_CONTROLLER is the program's file");
        let [grpc, http] = [free(), free()];
        // It does not outlive this process, however that ends.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            &program,
            "--listen",
            &grpc.to_string(),
            "--metrics-listen",
            &http.to_string(),
        ]);
        command.env("KUBECONFIG", bed.kubeconfig()).env("RUST_LOG", "warn");
        let (began, child) = (Instant::now(), command.spawn().unwrap());
        Self { child, began, grpc, http }
    }

    /// How long ago it was started.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// A node that subscribes as soon as it can, and has its view.
    pub(crate) async fn node(&self, name: &str) -> Node {
        while TcpStream::connect(self.grpc).await.is_err() {
            assert!(self.age() < PATIENCE, "the controller does not listen");
            tokio::time::sleep(POLL).await;
        }
        Node::subscribe(self.grpc, name).await
    }

    pub(crate) async fn is_ready(&self) {
        while !self.get("/readyz").await.starts_with("HTTP/1.1 200 ") {
            assert!(self.age() < PATIENCE, "the controller is not ready");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Its memory: `VmRSS` for now, `VmHWM` for the highest so far.
    pub(crate) fn resident_mb(&self, name: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let kib: f64 = line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        kib * 1024.0 / 1e6
    }

    /// The time that all its threads have run.
    pub(crate) fn cpu_s(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the program's name, which ends with the last parenthesis, user and system time are 12th and 13th.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum::<f64>() / 100.0
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// An address that nobody listens on.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
