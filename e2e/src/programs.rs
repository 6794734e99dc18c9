//! The programs that a cluster consists of: found, or else built from their Go modules in `e2e/cluster` (IO).
//!
//! Looked for in the folder that `DURWARD_BED_BIN` names, on the PATH (but containerd), and in the cache, which is keyed by what
//! is built.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::{Error, Result, error::Named, process};

/// One `go build`: the file that comes out of it, and how.
struct Build {
    file: &'static str,
    /// The components that the file contains, if it does not simply contain itself.
    components: &'static [&'static str],
    module: &'static str,
    package: &'static str,
    tags: &'static str,
}

const BUILDS: [Build; 8] = [
    Build {
        file: "hyperkube",
        components: &[
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        ],
        ..kubernetes("./hyperkube")
    },
    Build { file: "etcd", ..kubernetes("go.etcd.io/etcd/server/v3") },
    Build { file: "helm", ..kubernetes("helm.sh/helm/v4/cmd/helm") },
    Build { file: "agnhost", ..kubernetes("k8s.io/kubernetes/test/images/agnhost") },
    containerd("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
    containerd("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
    containerd("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
    Build { file: "coredns", components: &[], module: "coredns", package: ".", tags: "" },
];

/// Kubernetes' own suite of NetworkPolicy. No part of a cluster.
const NETPOL: Build = Build { file: "netpol", ..kubernetes("./netpol") };

const fn kubernetes(package: &'static str) -> Build {
    Build { file: "", components: &[], module: "kubernetes", package, tags: "" }
}

const fn containerd(file: &'static str, package: &'static str) -> Build {
    Build { file, components: &[], module: "runtime", package, tags: "no_btrfs,no_devmapper,no_zfs" }
}

/// A command that runs the program, which must have been found or built before.
pub fn command(program: &str) -> Result<Command> {
    let missing = || Error::unfit(format!("{program} is missing: run `durward-bed build`"));
    locate(program)?.ok_or_else(missing).map(|(file, component)| {
        let mut command = Command::new(file);
        command.args(component);
        command
    })
}

/// The file of a program that is a file of its own.
pub fn file(program: &str) -> Result<PathBuf> {
    Ok(command(program)?.get_program().into())
}

/// The search path on which containerd finds its shim and runc, and kube-proxy nft and iptables.
pub(crate) fn search_path() -> Result<String> {
    let system = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let folders = [named_folder(), Some(cache()?)].into_iter().flatten().chain(system.map(PathBuf::from));
    let path = env::join_paths(folders).map_err(|error| Error::unfit(format!("search path: {error}")))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Builds what is not there yet, and says so on standard error.
pub fn build() -> Result<()> {
    let mut missing = Vec::new();
    for build in &BUILDS {
        let wanted = build.components.iter().chain(build.components.is_empty().then_some(&build.file));
        let found = wanted.map(|program| locate(program)).collect::<Result<Vec<_>>>()?;
        if found.iter().any(Option::is_none) {
            missing.push(build);
        }
    }
    if missing.is_empty() { Ok(()) } else { build_all(&missing) }
}

/// Builds Kubernetes' own suite of NetworkPolicy and gives its file. Each time: Go knows best what has changed since.
pub(crate) fn netpol() -> Result<PathBuf> {
    build_all(&[&NETPOL])?;
    Ok(cache()?.join(NETPOL.file))
}

fn build_all(builds: &[&Build]) -> Result<()> {
    let target = cache()?;
    fs::create_dir_all(&target).at("creating", &target)?;
    let lock = fs::File::create(target.join(".lock")).at("creating the lock in", &target)?;
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).at("locking", &target)?;
    for build in builds {
        let what = format!("building {} from its Go module (minutes, if Go's cache is cold)", build.file);
        timed(&what, || build.run(&target))?;
    }
    Ok(())
}

impl Build {
    fn run(&self, target: &Path) -> Result<()> {
        let module = modules().join(self.module);
        // Under its final name only when it is complete, in case we are killed.
        let (partial, complete) = (target.join(format!("{}.partial", self.file)), target.join(self.file));
        let mut go = Command::new("go");
        go.current_dir(&module).env("CGO_ENABLED", "0").args(["build", "-trimpath", "-buildvcs=false"]);
        go.args(["-ldflags", &link_flags(&module)?, "-tags", self.tags, "-o"])
            .arg(&partial)
            .arg(self.package);
        process::output(&mut go)?;
        fs::rename(&partial, &complete).at("renaming", &partial)
    }
}

/// Kubernetes' components have their version from the linker; without it a kubelet says v0.0.0.
fn link_flags(module: &Path) -> Result<String> {
    let file = module.join("go.mod");
    let text = fs::read_to_string(&file).at("reading", &file)?;
    let version = text.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
    let Some(version) = version.and_then(|rest| rest.split_whitespace().next()) else {
        return Ok("-s -w".into());
    };
    let mut parts = version.split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let variable = "-X k8s.io/component-base/version";
    Ok(format!(
        "-s -w {variable}.gitVersion=v{version} {variable}.gitMajor={major} {variable}.gitMinor={minor}"
    ))
}

/// The file that is or contains the program, and in the latter case how the file is told.
fn locate(program: &str) -> Result<Option<(PathBuf, Option<String>)>> {
    let container = BUILDS.iter().find(|build| build.components.contains(&program)).map(|build| build.file);
    // A machine's own containerd serves its own purpose, and is often older than what kubelet talks to.
    let is_runtime = BUILDS.iter().any(|build| build.module == "runtime" && build.file == program);
    let path = env::var_os("PATH").filter(|_| !is_runtime).unwrap_or_default();
    let folders = named_folder()
        .into_iter()
        .chain(env::split_paths(&path).filter(|folder| folder.is_absolute()))
        .chain([cache()?]);
    Ok(folders.into_iter().find_map(|folder| {
        let (own, shared) = (folder.join(program), container.map(|file| folder.join(file)));
        let shared = || shared.filter(|file| file.is_file()).map(|file| (file, Some(program.to_owned())));
        if own.is_file() { Some((own, None)) } else { shared() }
    }))
}

fn named_folder() -> Option<PathBuf> {
    env::var_os("DURWARD_BED_BIN").map(PathBuf::from)
}

fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster")
}

/// `${XDG_CACHE_HOME:-~/.cache}/durward`.
pub(crate) fn cache_root() -> Result<PathBuf> {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let root = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    Ok(root
        .ok_or_else(|| Error::unfit("neither XDG_CACHE_HOME nor HOME is set: no place for a cache"))?
        .join("durward"))
}

fn cache() -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for module in ["coredns", "kubernetes", "kubernetes/hyperkube", "runtime"] {
        for name in ["go.mod", "go.sum", "main.go"] {
            let file = modules().join(module).join(name);
            if file.is_file() {
                hash.update(fs::read(&file).at("reading", &file)?);
            }
        }
    }
    Ok(cache_root()?.join(format!("bin-{}", &hex(&hash.finalize())[..12])))
}

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Does something long: says what on standard error, and from time to time for how long already.
pub(crate) fn timed<T: Send>(what: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let start = Instant::now();
    eprintln!("{what} …");
    let result = thread::scope(|scope| {
        let work = scope.spawn(work);
        let mut said = 0;
        while !work.is_finished() {
            thread::sleep(Duration::from_millis(20));
            let tens = start.elapsed().as_secs() / 10;
            if tens > said {
                said = tens;
                eprintln!("{what} … {} s", tens * 10);
            }
        }
        work.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    });
    let end = if result.is_ok() { "done" } else { "failed" };
    eprintln!("{what}: {end} after {:.1} s", start.elapsed().as_secs_f32());
    result
}
