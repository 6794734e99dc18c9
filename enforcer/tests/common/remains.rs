//! What is left of a test run that was killed: as little as can be, and the next run removes it. IO.
//!
//! Mounts are in a namespace that ends with the run, and processes are killed with the thread that started
//! them. Folders and cgroups stay; their names tell whose they are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const PREFIX: &str = "durward-test-";

/// A name that tells that it is this process's.
pub fn name(number: u32) -> String {
    format!("{PREFIX}{}-{number}", std::process::id())
}

/// From now on this thread, and all that it starts, mount for themselves alone.
pub fn mount_privately() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

/// A command that is killed when the thread ends that starts it, however it ends.
pub fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// Removes, once, what runs have left that are gone.
pub fn sweep(cgroups: &Path) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for cgroup in of_the_dead(cgroups) {
            let _ = std::fs::write(cgroup.join("cgroup.kill"), "1");
            remove_cgroup(&cgroup);
        }
        for folder in of_the_dead(&std::env::temp_dir()) {
            let _ = std::fs::remove_dir_all(folder);
        }
    });
}

fn of_the_dead(folder: &Path) -> Vec<PathBuf> {
    let dead = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
        let pid = name.and_then(|name| name.split_once('-')?.0.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).filter(dead).collect()
}

/// Removes a cgroup and those below it; processes that were killed may take a moment to leave.
pub fn remove_cgroup(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    for _ in 0..500 {
        if std::fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
