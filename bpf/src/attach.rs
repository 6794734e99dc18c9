//! Programs and interfaces: links that are pinned, so that they outlive this process. IO.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libbpf_rs::query::{LinkInfo, LinkTypeInfo};
use libbpf_sys as sys;
use serde::Serialize;
use thiserror::Error;

use crate::{DataPath, Direction};

/// Why programs and an interface could not be brought together or apart.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error("interface {ifindex}: cannot {what}: {source}")]
    Kernel {
        /// The interface.
        ifindex: u32,
        /// What was tried.
        what: &'static str,
        /// What the kernel said. `ENODEV`: the interface is gone.
        source: std::io::Error,
    },
    /// A pin could not be made, read or removed.
    #[error("{path}: {source}")]
    Pin {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A pinned link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Attached {
    /// The interface that it was made for.
    pub ifindex: u32,
    /// Which packets it sees.
    pub direction: Direction,
    /// Whether the interface is still there.
    pub live: bool,
}

/// The program and the hook for packets of a direction, at the host's side of a pod's interface: what the pod
/// sends comes in there.
const fn hook(direction: Direction) -> (&'static str, sys::bpf_attach_type) {
    match direction {
        Direction::Ingress => ("to_pod", sys::BPF_TCX_EGRESS),
        Direction::Egress => ("from_pod", sys::BPF_TCX_INGRESS),
    }
}

impl DataPath {
    /// Attaches the programs to an interface, before all others; where they are attached, of whatever version,
    /// these take their place: each packet is judged by the old or the new.
    ///
    /// # Errors
    ///
    /// [`AttachError`] if the kernel refuses. Then neither direction or just one may be attached: detach or
    /// try again.
    pub fn attach(&self, ifindex: u32) -> Result<(), AttachError> {
        Direction::BOTH.into_iter().try_for_each(|direction| self.attach_one(ifindex, direction))
    }

    fn attach_one(&self, ifindex: u32, direction: Direction) -> Result<(), AttachError> {
        let (name, hook) = hook(direction);
        let refused = |what| move |source| AttachError::Kernel { ifindex, what, source };
        let program = self.program(name).ok_or_else(|| std::io::Error::other("no such program"));
        let program = program.map_err(refused("find the program"))?.as_raw_fd();
        let path = self.link_path(ifindex, direction);
        if path.exists() {
            let link = open_pin(&path)?;
            if is_live(&link, ifindex) {
                // SAFETY: both descriptors are open, and no options are given.
                let updated = unsafe { sys::bpf_link_update(link.as_raw_fd(), program, std::ptr::null()) };
                return check(updated).map(drop).map_err(refused("replace the program"));
            }
            // Of an interface that is gone, whose index another one has now.
            remove_pin(&path)?;
        }
        let mut options = sys::bpf_link_create_opts {
            sz: size_of::<sys::bpf_link_create_opts>() as _,
            ..Default::default()
        };
        options.flags = sys::BPF_F_BEFORE;
        // SAFETY: the descriptor is open, and the options live until the call returns.
        let link = unsafe { sys::bpf_link_create(program, ifindex.cast_signed(), hook, &options) };
        let link = check(link).map_err(refused("attach"))?;
        // SAFETY: a descriptor that the kernel just made for us.
        let link = unsafe { OwnedFd::from_raw_fd(link) };
        let pinned = c_path(&path);
        // SAFETY: the path ends in a zero byte, the descriptor is open.
        let pinned = unsafe { sys::bpf_obj_pin(link.as_raw_fd(), pinned.as_ptr()) };
        check(pinned).map(drop).map_err(|source| AttachError::Pin { path, source })
    }

    /// Detaches the programs from an interface, whether or not it is still there.
    ///
    /// # Errors
    ///
    /// [`AttachError`] if the kernel refuses. Programs that are not attached are no error.
    pub fn detach(&self, ifindex: u32) -> Result<(), AttachError> {
        for direction in Direction::BOTH {
            let path = self.link_path(ifindex, direction);
            if path.exists() {
                let link = open_pin(&path)?;
                // At once, not when the last reference is dropped. It fails where the interface is gone.
                // SAFETY: the descriptor is open.
                let _ = unsafe { sys::bpf_link_detach(link.as_raw_fd()) };
                remove_pin(&path)?;
            }
        }
        Ok(())
    }

    /// All links that are pinned.
    ///
    /// # Errors
    ///
    /// [`AttachError`] if the folder cannot be read.
    pub fn attached(&self) -> Result<Vec<Attached>, AttachError> {
        let failed = |source| AttachError::Pin { path: self.links.clone(), source };
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.links).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let parsed =
                name.to_str().and_then(|name| name.split_once('-')).and_then(|(ifindex, program)| {
                    let direction =
                        Direction::BOTH.into_iter().find(|&direction| hook(direction).0 == program)?;
                    Some((ifindex.parse().ok()?, direction))
                });
            // What is not named as ours was not pinned by us.
            let Some((ifindex, direction)) = parsed else { continue };
            let live = is_live(&open_pin(&entry.path())?, ifindex);
            all.push(Attached { ifindex, direction, live });
        }
        all.sort_unstable();
        Ok(all)
    }

    fn link_path(&self, ifindex: u32, direction: Direction) -> PathBuf {
        // The file system of BPF refuses dots in names.
        self.links.join(format!("{ifindex}-{}", hook(direction).0))
    }
}

/// Whether this kernel can attach by tcx: it answers what is attached to the loopback interface.
pub(crate) fn tcx_is_known() -> bool {
    const LOOPBACK: i32 = 1;
    let mut options =
        sys::bpf_prog_query_opts { sz: size_of::<sys::bpf_prog_query_opts>() as _, ..Default::default() };
    // SAFETY: the options live until the call returns, and ask for no array to be filled.
    check(unsafe { sys::bpf_prog_query_opts(LOOPBACK, sys::BPF_TCX_INGRESS, &mut options) }).is_ok()
}

fn is_live(link: &OwnedFd, ifindex: u32) -> bool {
    let info = LinkInfo::from_fd(link.as_fd()).map(|info| info.info);
    matches!(info, Ok(LinkTypeInfo::Tcx(tcx)) if tcx.ifindex == ifindex)
}

fn open_pin(path: &Path) -> Result<OwnedFd, AttachError> {
    let name = c_path(path);
    // SAFETY: the path ends in a zero byte.
    let opened = check(unsafe { sys::bpf_obj_get(name.as_ptr()) });
    let fd = opened.map_err(|source| AttachError::Pin { path: path.to_owned(), source })?;
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn remove_pin(path: &Path) -> Result<(), AttachError> {
    std::fs::remove_file(path).map_err(|source| AttachError::Pin { path: path.to_owned(), source })
}

fn c_path(path: &Path) -> CString {
    // A path that came from the system or from us has no zero byte in it; an empty one is refused by the kernel.
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// libbpf returns negative errors.
fn check(returned: i32) -> std::io::Result<i32> {
    if returned < 0 { Err(std::io::Error::from_raw_os_error(-returned)) } else { Ok(returned) }
}
