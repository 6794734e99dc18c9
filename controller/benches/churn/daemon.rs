//! The daemon, as a process of its own, and what the kernel says of it. Does IO.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::PATIENCE;

/// The kernel counts processes' time in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// A daemon that runs; it ends with this.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) grpc: SocketAddr,
    http: SocketAddr,
}

impl Daemon {
    pub(crate) fn start(api: SocketAddr) -> Self {
        let kubeconfig = Path::new(env!("CARGO_TARGET_TMPDIR")).join("churn.kubeconfig");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
             users: [{{name: u, user: {{}}}}], clusters: [{{name: c, cluster: {{server: \"http://{api}\"}}}}]}}"
        );
        fs::write(&kubeconfig, text).unwrap();
        let [grpc, http] = [free(), free()];
        // It does not outlive this process, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_durward-controller")])
            .args(["--listen", &grpc.to_string(), "--metrics-listen", &http.to_string()])
            .env("KUBECONFIG", &kubeconfig)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, grpc, http }
    }

    pub(crate) async fn is_ready(&self) {
        let begin = Instant::now();
        while !self.get("/readyz").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            assert!(begin.elapsed() < PATIENCE, "the daemon is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.http).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// The time that all its threads have run, in the kernel too.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the program's name, which ends with the last parenthesis, user and system time are 12th and 13th.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
        Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
    }

    /// Its memory: `VmRSS` for now, `VmHWM` for the highest so far.
    pub(crate) fn resident_mb(&self, name: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let kib: f64 = line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        kib * 1024.0 / 1e6
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
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
