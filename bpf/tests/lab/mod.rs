//! A private place for one test: a mount namespace with its own BPF file system, a network namespace with two
//! interfaces. It belongs to the test's thread and ends with it, also when the test panics.

#![allow(dead_code, unreachable_pub)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use durward_bpf::{DataPath, Options};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub mod frame;
pub mod pod;
pub mod wire;

/// Runs a test in a lab of its own.
pub fn run(test: impl FnOnce(&Lab) + Send) {
    std::thread::scope(|scope| {
        let done = scope.spawn(|| test(&Lab::new())).join();
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The place.
pub struct Lab {
    pub bpffs: PathBuf,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test loads BPF programs: run it as root");
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("namespaces of our own");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        let folder = tempfile::tempdir().expect("a folder");
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), none).expect("a BPF file system");
        ip("link set lo up");
        Self { bpffs: folder.path().to_owned(), folder }
    }

    /// The data path, with a table of connections that is small enough to be made quickly.
    pub fn open(&self) -> DataPath {
        let options = Options { connections: 65536, ..Options::default() };
        DataPath::open(&self.bpffs, options).expect("the programs load")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The folder below the mount can be removed only without it.
        let _ = nix::mount::umount2(self.folder.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Runs `ip` in this thread's namespaces.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}");
}

/// The index of an interface.
pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("the interface exists")
}

/// A name that no other test of this process uses.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Waits until something holds; panics after two minutes.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(std::time::Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
