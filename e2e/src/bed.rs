//! A bed goes up and down (IO).

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::Uid,
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    Config, Error, Image, Namespaces, Result, config,
    config::{CONTROL_PLANE, scratch},
    control::{self, ControlPlane},
    error::Named,
    fabric, images,
    node::{self, Node},
    process, programs, sweep,
};

/// The file that says that a bed is up although no process has it.
const KEPT: &str = "kept";

const COREDNS: &str = include_str!("../cluster/coredns/coredns.yaml");

/// A cluster that is up. It goes down when this is dropped, and when the process is interrupted or terminated.
#[derive(Debug)]
pub struct Bed {
    pub(crate) config: Config,
    /// Only the one who brought it up takes it down; an attached handle does not.
    owner: Option<UnixListener>,
}

/// The beds that this process takes down when it is interrupted.
static OWNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl Bed {
    /// Brings up a bed, after removing what an earlier one of the same name left, and what killed runs of others left.
    /// Waits if another process has this one up.
    pub fn up(config: Config) -> Result<Self> {
        if !config.is_valid() {
            return Err(Error::unfit(format!(
                "a bed is named by a-z, 0-9, -, and has at most 9 nodes: {config:?}"
            )));
        }
        if !Uid::effective().is_root() {
            return Err(Error::unfit("a bed needs root: it makes namespaces, cgroups and mounts"));
        }
        programs::build()?;
        let archives = match config.nodes {
            0 => Vec::new(),
            _ => vec![images::pause().archive()?, images::coredns()?.archive()?, images::shell()?.archive()?],
        };
        let owner = Some(lock(&config.name)?);
        clean_when_interrupted()?;
        owned(|beds| beds.insert(config.name.clone()));
        let bed = Self { config, owner };
        sweep::sweep(bed.name())?;
        sweep_abandoned()?;
        bed.assemble(&archives)?;
        Ok(bed)
    }

    /// A handle of a bed that is up, whoever brought it up.
    pub fn attach(name: &str) -> Result<Self> {
        let file = scratch(name).join("bed.json");
        let text = fs::read(&file).map_err(|_| Error::unfit(format!("no bed {name} is up")))?;
        let config = serde_json::from_slice(&text).at("reading", &file)?;
        Ok(Self { config, owner: None })
    }

    /// Takes down a bed that a process left up, or that was left by a killed one.
    pub fn down(name: &str) -> Result<()> {
        let busy = |_| Error::unfit(format!("a running process has bed {name} up; end that one"));
        let _lock = try_lock(name)?.map_err(busy)?;
        sweep::sweep(name)
    }

    /// Whatever there is of a bed of this name: cgroups, network namespaces, files. Empty when none is up.
    pub fn belongings(name: &str) -> Result<Vec<String>> {
        sweep::belongings(name)
    }

    /// Leaves the bed up when the process ends.
    pub fn keep(mut self) -> Result<()> {
        let mark = self.folder().join(KEPT);
        fs::write(&mark, "").at("writing", &mark)?;
        self.owner = None;
        owned(|beds| beds.remove(self.name()));
        Ok(())
    }

    /// The bed's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The names of its nodes: n1, n2, ….
    pub fn nodes(&self) -> Vec<String> {
        self.config.node_names()
    }

    /// The addresses of a host: of a node, or of the control plane (`cp`).
    pub fn addresses(&self, host: &str) -> (Ipv4Addr, Ipv6Addr) {
        config::addresses(host)
    }

    /// Both addresses of a host.
    pub fn host_addresses(&self, host: &str) -> [IpAddr; 2] {
        let (v4, v6) = config::addresses(host);
        [v4.into(), v6.into()]
    }

    /// The namespaces of a host: `cp` (where the API server is reached) or a node.
    pub fn host(&self, host: &str) -> Result<Namespaces> {
        match host {
            CONTROL_PLANE => fabric::namespace(self.name(), host),
            node => node::namespaces(self.name(), node),
        }
    }

    /// Runs `work` on a host, on a thread of its own. Runtimes, clients and commands that it starts are there too.
    pub fn on<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.host(host)?.run(work)
    }

    /// An administrator's kubeconfig, good on every host.
    pub fn kubeconfig(&self) -> PathBuf {
        control::kubeconfig(self.name(), "admin")
    }

    /// The folder with the bed's logs: `<daemon>.log`, `<node>/<daemon>.log`; `<node>/log` is the node's /var/log.
    pub fn folder(&self) -> PathBuf {
        scratch(self.name())
    }

    /// Gives all nodes an image.
    pub fn load(&self, image: &Image) -> Result<()> {
        self.load_archive(&image.archive()?)
    }

    /// Gives all nodes the images of an archive.
    pub fn load_archive(&self, archive: &Path) -> Result<()> {
        each(&self.nodes(), |node| import(&self.host(node)?, archive)).map(drop)
    }

    fn assemble(&self, archives: &[PathBuf]) -> Result<()> {
        let (config, folder) = (&self.config, self.folder());
        fs::create_dir_all(&folder).at("creating", &folder)?;
        let text = serde_json::to_vec(config).named("writing the bed's configuration")?;
        fs::write(folder.join("bed.json"), text).at("writing in", &folder)?;
        fabric::weave(config)?;
        let control = ControlPlane::new(config)?;
        thread::scope(|scope| {
            let nodes = scope.spawn(|| each(&self.nodes(), |name| start_node(config, name, archives)));
            control.start()?;
            if config.nodes == 0 {
                return Ok(());
            }
            control.start_controllers()?;
            let nodes = nodes.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
            nodes.iter().try_for_each(|(node, host)| node.join(host))?;
            self.apply(COREDNS)?;
            self.wait_ready()
        })
    }

    /// Nodes are ready, names are resolved, and pods can be made in the default namespace.
    fn wait_ready(&self) -> Result<()> {
        self.wait("all nodes are ready", || {
            let nodes = self.json(&["get", "nodes"])?;
            let is_ready = |node: &&serde_json::Value| {
                let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
                conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
            };
            let ready = nodes["items"].as_array().into_iter().flatten().filter(is_ready).count();
            Ok((ready == usize::from(self.config.nodes)).then_some(()))
        })?;
        self.wait("CoreDNS is available", || {
            let deployment = self.json(&["-n", "kube-system", "get", "deployment", "coredns"])?;
            Ok((deployment["status"]["availableReplicas"] == 1).then_some(()))
        })?;
        self.wait_service_account("default")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.owner.is_some() {
            if let Err(error) = sweep::sweep(self.name()) {
                eprintln!("bed {} is not quite down: {error}", self.name());
            }
            owned(|beds| beds.remove(self.name()));
        }
    }
}

fn start_node(config: &Config, name: &str, archives: &[PathBuf]) -> Result<(Node, Namespaces)> {
    let node = Node::new(config, name)?;
    let host = node.start()?;
    archives.iter().try_for_each(|archive| import(&host, archive))?;
    Ok((node, host))
}

fn import(host: &Namespaces, archive: &Path) -> Result<()> {
    // Read from here: the node may not see the file.
    let archive = fs::File::open(archive).at("opening", archive)?;
    let mut ctr = programs::command("ctr")?;
    ctr.args(["--namespace", "k8s.io", "images", "import", "-"]);
    host.run(move || process::run(&mut ctr, Stdio::from(archive)))?.map(drop)
}

/// Does `work` for all at once.
fn each<T: Send>(names: &[String], work: impl Fn(&str) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(|| work(name))).collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results.map(|result| result.unwrap_or_else(|payload| std::panic::resume_unwind(payload))).collect()
    })
}

/// Removes the beds that no process has up, and that none was to leave up.
fn sweep_abandoned() -> Result<()> {
    for bed in sweep::beds()? {
        if !scratch(&bed).join(KEPT).exists() {
            let Ok(_lock) = try_lock(&bed)? else { continue };
            sweep::sweep(&bed)?;
        }
    }
    Ok(())
}

/// Makes this process the only one that deals with the bed. The kernel forgets the lock with the process.
fn try_lock(bed: &str) -> Result<std::io::Result<UnixListener>> {
    let address = SocketAddr::from_abstract_name(format!("durward-bed-{bed}")).named("naming the lock")?;
    Ok(UnixListener::bind_addr(&address))
}

fn lock(bed: &str) -> Result<UnixListener> {
    let mut said = false;
    loop {
        if let Ok(lock) = try_lock(bed)? {
            return Ok(lock);
        }
        if !std::mem::replace(&mut said, true) {
            eprintln!("waiting for the process that has bed {bed} up …");
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Ends this process, and with it its beds, when the one that started it is killed. For programs that nobody starts to
/// outlive them, such as tests.
pub fn end_with_parent() -> Result<()> {
    set_pdeathsig(Signal::SIGTERM).named("asking for a signal at the parent's end")
}

fn clean_when_interrupted() -> Result<()> {
    static LISTENS: AtomicBool = AtomicBool::new(false);
    if LISTENS.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).named("listening for signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            process::close();
            for bed in owned(|beds| beds.clone()) {
                eprintln!("interrupted: taking down bed {bed}");
                if let Err(error) = sweep::sweep(&bed) {
                    eprintln!("bed {bed} is not quite down: {error}");
                }
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn owned<T>(change: impl FnOnce(&mut BTreeSet<String>) -> T) -> T {
    change(&mut OWNED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}
