//! Namespaces of hosts and pods, and running code in them on a thread of its own (IO).

use std::{fs::File, panic, path::Path, process::Command, thread};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Result, error::Named, process};

/// The network namespace of a host or pod; for a node also its mount namespace.
#[derive(Debug)]
pub struct Namespaces {
    network: File,
    mount: Option<File>,
}

impl Namespaces {
    pub(crate) fn network(path: &Path) -> Result<Self> {
        Ok(Self { network: File::open(path).at("opening network namespace", path)?, mount: None })
    }

    pub(crate) fn of_process(pid: u32) -> Result<Self> {
        let mount = Path::new("/proc").join(pid.to_string()).join("ns/mnt");
        Ok(Self {
            mount: Some(File::open(&mount).at("opening mount namespace", &mount)?),
            ..Self::network_of(pid)?
        })
    }

    pub(crate) fn network_of(pid: u32) -> Result<Self> {
        Self::network(&Path::new("/proc").join(pid.to_string()).join("ns/net"))
    }

    /// Runs `work` inside. Threads, sockets, runtimes and commands that it starts are inside too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Runs a command inside and gives what it printed.
    pub fn command(&self, program: &str, args: &[&str]) -> Result<String> {
        self.run(|| process::output(Command::new(program).args(args)))?
    }

    /// Another handle of the same namespaces.
    pub fn try_clone(&self) -> Result<Self> {
        let clone = |file: &File| file.try_clone().named("duplicating a namespace handle");
        Ok(Self { network: clone(&self.network)?, mount: self.mount.as_ref().map(clone).transpose()? })
    }

    /// Moves the calling thread, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        if let Some(mount) = &self.mount {
            // A thread that shares its working directory with others may not change its mount namespace.
            unshare(CloneFlags::CLONE_FS).named("leaving the shared working directory")?;
            setns(mount, CloneFlags::CLONE_NEWNS).named("entering a mount namespace (are you root?)")?;
        }
        setns(&self.network, CloneFlags::CLONE_NEWNET).named("entering a network namespace (are you root?)")
    }
}
