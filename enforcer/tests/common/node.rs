//! The node, its pods, and the enforcer on it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::remains::{self, mortal};
use super::traffic::{Connection, connects, inside, serve};
use super::{PATIENCE, eventually};

/// Runs a command, and fails with its words if it fails.
pub fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {words}", command.join(" "));
}

/// A node.
pub struct Node {
    folder: tempfile::TempDir,
    cgroup: PathBuf,
    pods: Vec<Pod>,
    mounts: Vec<PathBuf>,
}

/// A pod on it.
#[derive(Debug)]
pub struct Pod {
    pub uid: String,
    pub address: IpAddr,
    pub namespace: PathBuf,
    link: String,
    processes: Vec<Child>,
}

/// The node's address on every link to a pod.
pub const NODE: &str = "10.77.0.1";

impl Node {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes namespaces, cgroups and mounts: run it as root"
        );
        // Where v1 and v2 are mounted side by side, v2 is here.
        let unified = Path::new("/sys/fs/cgroup/unified");
        let root = if unified.exists() { unified } else { Path::new("/sys/fs/cgroup") };
        remains::sweep(root);
        remains::mount_privately();
        let name = remains::name(COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new().prefix(&name).tempdir().unwrap();
        let cgroup = root.join(&name);
        std::fs::create_dir(&cgroup).unwrap();
        let mut node = Self { folder, cgroup, pods: Vec::new(), mounts: Vec::new() };
        for part in ["netns", "bpffs", "state", "log"] {
            std::fs::create_dir(node.path(part)).unwrap();
        }
        mount(Some("bpf"), &node.path("bpffs"), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        node.mounts.push(node.path("bpffs"));
        node.make_namespace("host");
        node.on_host(&["ip", "link", "set", "lo", "up"]);
        node.on_host(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        node
    }

    pub fn path(&self, part: &str) -> PathBuf {
        self.folder.path().join(part)
    }

    pub fn host(&self) -> PathBuf {
        self.path("host")
    }

    fn make_namespace(&mut self, part: &str) {
        let path = self.path(part);
        File::create(&path).unwrap();
        run(&["unshare", &format!("--net={}", path.display()), "true"]);
        self.mounts.push(path);
    }

    /// Runs a command in the node's network namespace.
    pub fn on_host(&self, command: &[&str]) {
        let enter = format!("--net={}", self.host().display());
        run(&[&["nsenter", &enter], command].concat());
    }

    /// A pod with a namespace, an interface, an address and a process. The last byte of its address and of its
    /// UID is `n`.
    pub fn add_pod(&mut self, n: u8) -> usize {
        let part = format!("netns/pod-{n}");
        self.make_namespace(&part);
        let namespace = self.path(&part);
        let (link, address) = (format!("veth{n}"), format!("10.77.0.{n}"));
        let path = namespace.to_str().unwrap().to_owned();
        self.on_host(&["ip", "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &path]);
        self.on_host(&["ip", "addr", "add", &format!("{NODE}/32"), "dev", &link]);
        self.on_host(&["ip", "link", "set", &link, "up"]);
        self.on_host(&["ip", "route", "add", &format!("{address}/32"), "dev", &link]);
        let (uid, processes) = (uid(n), Vec::new());
        let pod = Pod { uid: uid.clone(), address: address.parse().unwrap(), namespace, link, processes };
        pod.run(&["ip", "link", "set", "lo", "up"]);
        pod.run(&["ip", "addr", "add", &format!("{address}/32"), "dev", "eth0"]);
        pod.run(&["ip", "link", "set", "eth0", "up"]);
        pod.run(&["ip", "route", "add", NODE, "dev", "eth0"]);
        pod.run(&["ip", "route", "add", "default", "via", NODE]);
        self.pods.push(pod);
        let index = self.pods.len() - 1;
        self.add_process(index, &uid);
        index
    }

    /// A process in a pod's network namespace, and in the cgroup that `uid` names.
    pub fn add_process(&mut self, pod: usize, uid: &str) {
        let cgroup = self.cgroup.join(format!("kubepods/besteffort/pod{uid}/container"));
        std::fs::create_dir_all(&cgroup).unwrap();
        let namespace = &self.pods[pod].namespace;
        let into = format!(
            "echo $$ > {}/cgroup.procs; exec nsenter --net={} sleep infinity",
            cgroup.display(),
            namespace.display()
        );
        let process = mortal("sh").args(["-c", &into]).stdin(Stdio::null()).spawn().unwrap();
        let of = PathBuf::from(format!("/proc/{}", process.id()));
        let there = || {
            let cgroups = std::fs::read_to_string(of.join("cgroup")).unwrap();
            let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
            cgroups.contains(uid) && inode(&of.join("ns/net")) == inode(namespace)
        };
        eventually("the process is in its cgroup and namespace", || there().then_some(()));
        self.pods[pod].processes.push(process);
    }

    pub fn pod(&self, index: usize) -> &Pod {
        &self.pods[index]
    }

    /// The pod's namespace and interface go, as the runtime takes them away.
    pub fn remove_pod(&mut self, index: usize) {
        for process in &mut self.pods[index].processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        // A namespace goes some time after its name, and its end of the link with it.
        self.on_host(&["ip", "link", "del", &self.pods[index].link]);
        let path = self.pods[index].namespace.clone();
        umount2(&path, MntFlags::MNT_DETACH).unwrap();
        std::fs::remove_file(&path).unwrap();
        self.mounts.retain(|mounted| *mounted != path);
    }

    /// Starts the enforcer; `controller` is the address of its gRPC.
    pub fn start(&self, controller: SocketAddr) -> Enforcer {
        self.start_with(controller, &[])
    }

    pub fn start_with(&self, controller: SocketAddr, options: &[&str]) -> Enforcer {
        let log = File::options().append(true).create(true).open(self.path("enforcer.log")).unwrap();
        let mut command = mortal("nsenter");
        command.arg(format!("--net={}", self.host().display())).arg(env!("CARGO_BIN_EXE_durward-enforcer"));
        command.args([
            "run",
            "--node-name",
            "node-1",
            "--metrics-listen",
            "127.0.0.1:9445",
            "--services",
            "exact",
        ]);
        command.arg("--controller").arg(format!("http://{controller}"));
        for (flag, part) in
            [("--bpffs", "bpffs"), ("--netns-dir", "netns"), ("--state-dir", "state"), ("--log-dir", "log")]
        {
            command.arg(flag).arg(self.path(part));
        }
        let child = command.args(options).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        Enforcer { child, host: self.host() }
    }

    /// What the enforcer has written to standard error.
    pub fn words(&self) -> String {
        std::fs::read_to_string(self.path("enforcer.log")).unwrap_or_default()
    }

    pub fn dump(&self) -> serde_json::Value {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.host().display())).arg(env!("CARGO_BIN_EXE_durward-enforcer"));
        command.arg("dump").arg("--bpffs").arg(self.path("bpffs"));
        let output = command.arg("--state-dir").arg(self.path("state")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the enforcer's words:\n{}", self.words());
        }
        for process in self.pods.iter_mut().flat_map(|pod| &mut pod.processes) {
            let _ = process.kill();
            let _ = process.wait();
        }
        for mounted in self.mounts.iter().rev() {
            let _ = umount2(mounted, MntFlags::MNT_DETACH);
        }
        remains::remove_cgroup(&self.cgroup);
    }
}

pub fn uid(n: u8) -> String {
    format!("00000000-0000-4000-8000-0000000000{n:02x}")
}

impl Pod {
    pub fn run(&self, command: &[&str]) {
        let enter = format!("--net={}", self.namespace.display());
        run(&[&["nsenter", &enter], command].concat());
    }

    /// Serves what [`Connection`] speaks, at a port; for as long as the test runs.
    pub fn listen(&self, port: u16) {
        serve(&self.namespace, port);
    }

    /// A new connection, which should come about.
    pub fn must_connect(&self, to: IpAddr, port: u16) -> Connection {
        Connection::must_open(&self.namespace, to, port)
    }

    /// Whether a new connection comes about; where it should, [`Pod::must_connect`].
    pub fn connects(&self, to: IpAddr, port: u16) -> bool {
        self.connects_from(self.address, to, port)
    }

    /// The same, from one of the pod's addresses.
    pub fn connects_from(&self, source: IpAddr, to: IpAddr, port: u16) -> bool {
        connects(&self.namespace, source, to, port)
    }
}

/// The running enforcer; killed when it is dropped.
pub struct Enforcer {
    child: Child,
    host: PathBuf,
}

impl Enforcer {
    /// The body and the status of an HTTP answer; none if nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        inside(&self.host, || {
            let mut stream = TcpStream::connect("127.0.0.1:9445").ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        })
    }

    /// The value of a metric, with its labels as it shows them.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    pub fn wait_metric(&self, name: &str, value: f64) {
        eventually(&format!("{name} is {value}"), || self.metric(name).filter(|is| (is - value).abs() < 0.5));
    }

    pub fn wait_ready(&self) {
        eventually("the enforcer is ready", || self.get("/readyz").filter(|(status, _)| *status == 200));
    }

    /// Sends a signal, and waits for the end.
    pub fn stop(mut self, signal: Signal) -> std::process::ExitStatus {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        self.child.wait().unwrap()
    }

    /// Waits for it to end by itself.
    pub fn ends(mut self) -> std::process::ExitStatus {
        eventually("the enforcer ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Enforcer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
