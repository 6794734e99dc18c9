//! Loads the programs, and takes over the maps that are pinned. IO.
//!
//! Facts first, then a decision, then writes: what this kernel and this file system can do is read into
//! [`Facts`], [`refusal`] says what is missing, and only then is anything loaded.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use libbpf_rs::{MapCore, MapHandle, Object, ObjectBuilder, OpenObject, ProgramInput};
use nix::sys::statfs::{FsType, statfs};
use thiserror::Error;

use crate::abi::{self, Plain};
use crate::mapped::Mapped;
use crate::tables::Tables;
use crate::{MapError, attach};

/// Why the data path could not be opened.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel has no type information.
    #[error("this kernel has no BTF (/sys/kernel/btf/vmlinux): it must be built with CONFIG_DEBUG_INFO_BTF")]
    NoBtf,
    /// The kernel has no tcx.
    #[error("this kernel cannot attach programs by tcx: Linux 6.6 or newer is needed")]
    NoTcx,
    /// No BPF file system where one should be.
    #[error("{path} is no BPF file system: mount one there (mount -t bpf bpf {path})")]
    NotBpffs {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A folder or a pin could not be made or read.
    #[error("{path}: {source}")]
    Pin {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A pinned map is not what this version of the programs needs.
    #[error(
        "the pinned map {path} has another shape (type, key, value, entries: {found:?}) than ABI {abi} ({wanted:?}): \
         it was made by another build; remove the folder once no pod needs it",
        abi = abi::ABI
    )]
    Shape {
        /// Its path.
        path: PathBuf,
        /// What it is.
        found: Shape,
        /// What it should be.
        wanted: Shape,
    },
    /// The kernel refused the programs.
    #[error("the kernel refuses Durward's programs: {source}; the verifier's words are on standard error")]
    Programs {
        /// What libbpf said.
        source: libbpf_rs::Error,
    },
    /// The object lacks something that it was compiled with.
    #[error("the compiled programs lack {what}")]
    Object {
        /// What is missing.
        what: String,
    },
    /// The kernel refuses the program at the forward hook.
    #[error(
        "this kernel cannot judge Services after translation: {source}; BPF netfilter links need Linux 6.4 and \
         CONFIG_NETFILTER_BPF_LINK"
    )]
    Forward {
        /// What the kernel said.
        source: libbpf_rs::Error,
    },
    /// A map could not be set up.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// What a map is: type, key size, value size, number of entries.
pub type Shape = (u32, u32, u32, u32);

/// What can be chosen when the maps are made. Maps that are there keep their sizes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many connections are tracked; at the limit, the one silent for longest gives way.
    pub connections: u32,
    /// How long a window of denials is.
    pub window: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { connections: 1 << 19, window: Duration::from_secs(5) }
    }
}

/// What is set while the programs run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Records a second for the log, for each CPU, endpoint, direction, and for denials and allowed
    /// connections apart. What exceeds it is counted: [`DataPath::take_suppressed`].
    pub log_rate: u32,
    /// How many may come at once.
    pub log_burst: u32,
    /// The UDP ports of this node's tunnel devices; at most 8.
    pub tunnel_ports: Vec<u16>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { log_rate: 1000, log_burst: 1000, tunnel_ports: Vec::new() }
    }
}

/// The loaded programs and their maps. Shared freely; dropping it changes nothing in the kernel.
pub struct DataPath {
    pub(crate) object: Object,
    pub(crate) pins: PathBuf,
    pub(crate) links: PathBuf,
    pub(crate) tables: Tables,
    pub(crate) eps: Mapped<abi::ep>,
    pub(crate) denials: Mapped<abi::denial>,
    pub(crate) timing: abi::timing,
    /// Where each endpoint's counters are.
    pub(crate) slots: Mutex<HashMap<u32, u32>>,
    pub(crate) next_page_row: AtomicU32,
    pub(crate) grace: Mutex<()>,
}

const PROGRAMS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pod.bpf.o"));
const ENDPOINTS: usize = 65536;

/// What this machine offers.
struct Facts {
    btf: bool,
    tcx: bool,
    bpffs: bool,
}

impl Facts {
    fn probe(bpffs: &Path) -> Self {
        const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);
        Self {
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            tcx: attach::tcx_is_known(),
            bpffs: statfs(bpffs).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC),
        }
    }
}

fn refusal(facts: &Facts, bpffs: &Path) -> Result<(), LoadError> {
    match facts {
        Facts { btf: false, .. } => Err(LoadError::NoBtf),
        Facts { tcx: false, .. } => Err(LoadError::NoTcx),
        Facts { bpffs: false, .. } => Err(LoadError::NotBpffs { path: bpffs.to_owned() }),
        Facts { btf: true, tcx: true, bpffs: true } => Ok(()),
    }
}

impl DataPath {
    /// Loads the programs and makes their maps below `<bpffs>/durward/v1`, or takes over those that are
    /// there. Nothing that is attached changes: see [`DataPath::attach`].
    ///
    /// # Errors
    ///
    /// [`LoadError`] says what is missing.
    pub fn open(bpffs: &Path, options: Options) -> Result<Self, LoadError> {
        refusal(&Facts::probe(bpffs), bpffs)?;
        let pins = bpffs.join("durward").join(format!("v{}", abi::ABI));
        let links = pins.join("links");
        std::fs::create_dir_all(&links).map_err(|source| LoadError::Pin { path: links.clone(), source })?;

        let refused = |source| LoadError::Programs { source };
        let timing = timing(options.window);
        let mut open = ObjectBuilder::default().open_memory(PROGRAMS).map_err(refused)?;
        prepare(&mut open, &pins, options.connections, timing)?;
        let object = open.load().map_err(refused)?;

        let mut maps = BTreeMap::new();
        for map in object.maps() {
            let name = map.name().to_string_lossy().into_owned();
            maps.insert(name, MapHandle::try_from(&map).map_err(refused)?);
        }
        let mut array =
            |name: &str| maps.remove(name).ok_or_else(|| LoadError::Object { what: name.to_owned() });
        let eps = Mapped::new("ep", array("ep")?.as_fd(), ENDPOINTS)?;
        let denials = Mapped::new("denial", array("denial")?.as_fd(), abi::DENIALS as usize)?;
        let tables =
            Tables::new(maps).map_err(|what| LoadError::Object { what: what.display().to_string() })?;

        let pages = tables.big_row.keys().into_iter().map(|key| key.row).max().unwrap_or(0);
        let path = Self {
            object,
            pins,
            links,
            tables,
            eps,
            denials,
            timing,
            slots: Mutex::default(),
            next_page_row: AtomicU32::new(pages + 1),
            grace: Mutex::default(),
        };
        path.begin()?;
        Ok(path)
    }

    /// Changes what can be changed while the programs run.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn set(&self, settings: &Settings) -> Result<(), MapError> {
        let mut config = self.tables.config.get(&0)?.unwrap_or_default();
        config.log_rate = settings.log_rate;
        config.log_burst = settings.log_burst;
        config.tunnel_port = Default::default();
        for (place, port) in config.tunnel_port.iter_mut().zip(&settings.tunnel_ports) {
            *place = port.to_be();
        }
        self.tables.config.put(&0, &config)
    }

    /// What user space knows of maps that it takes over, and what it must write into new ones.
    fn begin(&self) -> Result<(), MapError> {
        let owners = self.raw_endpoints()?.into_iter().map(|value| (value.ifindex, value.slot));
        self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(owners);
        if self.tables.cidr_atom.get(&crate::policy::v4_root())?.is_none() {
            self.guard_v4()?;
        }
        let mut config = self.tables.config.get(&0)?.unwrap_or_default();
        if config.seed == [0; 2] {
            config.seed = [(); 2].map(|()| random());
            self.tables.config.put(&0, &config)?;
            self.set(&Settings::default())?;
        }
        Ok(())
    }

    /// The kernel's clocks.
    pub(crate) fn clock(&self) -> Result<abi::clock, MapError> {
        let mut clock = abi::clock::default().bytes().to_vec();
        self.run("clock", &mut clock)?;
        Ok(abi::clock::from_bytes(&clock))
    }

    /// Runs one of the programs that user space asks; what it returned.
    pub(crate) fn run(&self, program: &'static str, context: &mut [u8]) -> Result<u32, MapError> {
        let input = ProgramInput { context_in: Some(context), ..Default::default() };
        self.run_with(program, input).map(|(returned, _)| returned)
    }

    /// Runs a program by itself: what it returned, and how long it took.
    pub(crate) fn run_with(
        &self,
        program: &'static str,
        input: ProgramInput<'_>,
    ) -> Result<(u32, Duration), MapError> {
        let refused = |source| MapError::Program { program, source };
        let found = self.object.progs_mut().find(|found| found.name() == program);
        let found = found.ok_or_else(|| refused(libbpf_rs::Error::from_raw_os_error(libc::ENOENT)))?;
        let output = found.test_run(input).map_err(refused)?;
        Ok((output.return_value, output.duration))
    }

    pub(crate) fn program(&self, name: &'static str) -> Option<BorrowedFd<'_>> {
        let found = self.object.progs_mut().find(|program| program.name() == name)?;
        // SAFETY: the object keeps its programs open for as long as it lives, and `self` owns it.
        Some(unsafe { BorrowedFd::borrow_raw(found.as_fd().as_raw_fd()) })
    }
}

/// Sets sizes, constants and pins before the load; refuses pinned maps of another shape.
pub(crate) fn prepare(
    open: &mut OpenObject,
    pins: &Path,
    connections: u32,
    timing: abi::timing,
) -> Result<(), LoadError> {
    let refused = |source| LoadError::Programs { source };
    for mut map in open.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if name.ends_with(".rodata") {
            map.set_initial_value(timing.bytes()).map_err(refused)?;
        }
        if name.contains('.') {
            continue; // libbpf's own, such as constants
        }
        if name == "ct" {
            map.set_max_entries(connections).map_err(refused)?;
        }
        let path = pins.join(&name);
        if path.exists() {
            let pinned = MapHandle::from_pinned_path(&path).map_err(refused)?;
            if name == "ct" {
                map.set_max_entries(pinned.max_entries()).map_err(refused)?;
            }
            let wanted = (map.map_type() as u32, map.key_size(), map.value_size(), map.max_entries());
            let found =
                (pinned.map_type() as u32, pinned.key_size(), pinned.value_size(), pinned.max_entries());
            // Rings and maps of maps have no value size of their own.
            if found != wanted {
                return Err(LoadError::Shape { path, found, wanted });
            }
        }
        map.set_pin_path(&path).map_err(refused)?;
    }
    Ok(())
}

/// The programs' constants. Timeouts are those of the protocols' usual trackers.
fn timing(window: Duration) -> abi::timing {
    let hz = jiffies_per_second();
    let mut timeout = [600 * hz; abi::CT_STATES as usize];
    let states = [
        (abi::CT_TCP_NEW, 60),
        (abi::CT_TCP_OPEN, 8000),
        (abi::CT_TCP_HALF, 120),
        (abi::CT_TCP_CLOSED, 10),
        (abi::CT_UDP_ONE, 30),
        (abi::CT_UDP_TWO, 180),
        (abi::CT_SCTP, 900),
        (abi::CT_ICMP, 30),
    ];
    for (state, seconds) in states {
        timeout[state as usize] = seconds * hz;
    }
    let window = (window.as_millis() as u64 * u64::from(hz) / 1000).max(1) as u32;
    abi::timing { hz, window, timeout, fragment: 30 * hz }
}

/// The kernel's HZ: the coarse clock advances once a jiffy, and says so.
fn jiffies_per_second() -> u32 {
    use nix::time::{ClockId, clock_getres};
    let jiffy =
        clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |jiffy| Duration::from(jiffy).as_nanos());
    // 250 is the kernel's own default.
    1_000_000_000_u128.checked_div(jiffy).map_or(250, |hz| hz as u32)
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Seeded by the system's generator, and never shown.
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lack_of_the_machine_is_refused_by_name() {
        let bpffs = Path::new("/bpffs");
        let refused = |btf, tcx, bpffs_there| refusal(&Facts { btf, tcx, bpffs: bpffs_there }, bpffs);
        assert!(matches!(refused(false, true, true), Err(LoadError::NoBtf)));
        assert!(matches!(refused(true, false, true), Err(LoadError::NoTcx)));
        assert!(matches!(refused(true, true, false), Err(LoadError::NotBpffs { path }) if path == bpffs));
        assert!(refused(true, true, true).is_ok());
    }

    #[test]
    fn a_folder_that_is_no_bpf_file_system_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = DataPath::open(folder.path(), Options::default()).err().map(|error| error.to_string());
        assert!(refused.is_some_and(|text| text.contains("is no BPF file system")));
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0, "nothing was written");
    }
}
