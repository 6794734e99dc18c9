//! Finds what belongs to a bed by name, and removes it: processes by their cgroup, then cgroups, namespaces, files (IO).
//!
//! Nothing about a run needs to be remembered for this, so that a killed run is cleaned up like any other. There are no
//! mounts to undo: a node's are in its own mount namespace, which ends with its last process.

use std::{fs, path::Path, path::PathBuf, process::Command};

use crate::{Error, Result, config, error::Named, process, wait};

/// Stops and removes everything of a bed.
pub(crate) fn sweep(bed: &str) -> Result<()> {
    wait(&format!("bed {bed} is gone"), || {
        let left = pass(bed).map_err(|error| error.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(format!("left: {}", left.join(", "))) }
    })
}

/// What there is of a bed: cgroups, network namespaces, files.
pub(crate) fn belongings(bed: &str) -> Result<Vec<String>> {
    let scratch = Some(config::scratch(bed)).filter(|folder| folder.exists());
    let all = cgroups(bed)?.into_iter().chain(namespaces(bed)?).chain(scratch);
    Ok(all.map(|path| path.display().to_string()).collect())
}

/// The beds that have files, up or not: a bed's files are the first of it to come, and the last to go.
pub(crate) fn beds() -> Result<Vec<String>> {
    let all = config::scratch("");
    let folders = if all.exists() { folders(&all)? } else { Vec::new() };
    Ok(folders.iter().filter_map(|folder| Some(folder.file_name()?.to_str()?.to_owned())).collect())
}

/// One attempt; what it could not remove yet is tried again.
fn pass(bed: &str) -> Result<Vec<String>> {
    for cgroup in cgroups(bed)? {
        let kill = cgroup.join("cgroup.kill");
        if kill.exists() {
            fs::write(&kill, "1").at("killing", &cgroup)?;
        }
    }
    for namespace in namespaces(bed)? {
        let name = namespace.file_name().unwrap_or_default();
        process::output(Command::new("ip").args(["netns", "delete"]).arg(name))?;
    }
    for cgroup in cgroups(bed)? {
        remove_cgroup(&cgroup);
    }
    let scratch = config::scratch(bed);
    if cgroups(bed)?.is_empty() && scratch.exists() {
        fs::remove_dir_all(&scratch).at("removing", &scratch)?;
    }
    belongings(bed)
}

/// From the leaves up. Busy ones stay: their processes are still dying.
fn remove_cgroup(cgroup: &Path) {
    for child in folders(cgroup).unwrap_or_default() {
        remove_cgroup(&child);
    }
    let _ = fs::remove_dir(cgroup);
}

/// Makes a host's cgroup in every hierarchy; gives the one that its processes are to join.
pub(crate) fn make_cgroup(id: &str) -> Result<PathBuf> {
    let mut home = None;
    for hierarchy in hierarchies()? {
        let cgroup = hierarchy.join(id);
        fs::create_dir_all(&cgroup).at("creating cgroup", &cgroup)?;
        for setting in ["cpuset.cpus", "cpuset.mems"].map(Path::new) {
            let (ours, parents) = (cgroup.join(setting), hierarchy.join(setting));
            // Version 1: no process may join until these are set.
            if ours.exists() && parents.exists() {
                let value = fs::read(&parents).at("reading", &parents)?;
                fs::write(&ours, value).at("writing", &ours)?;
            }
        }
        if hierarchy.join("cgroup.controllers").exists() {
            // A leaf: in version 2 a cgroup with pods below it may hold no processes itself.
            let leaf = cgroup.join("host");
            fs::create_dir_all(&leaf).at("creating cgroup", &leaf)?;
            home = Some(leaf);
        }
    }
    home.ok_or_else(|| Error::unfit("no cgroup2 file system is mounted below /sys/fs/cgroup"))
}

/// Where cgroup hierarchies are mounted: one on a machine with version 2 only, else one for each controller too.
pub(crate) fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").named("reading /proc/self/mounts")?;
    let mount_points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (point.starts_with("/sys/fs/cgroup") && kind.starts_with("cgroup")).then(|| PathBuf::from(point))
    });
    Ok(mount_points.collect())
}

fn cgroups(bed: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for hierarchy in hierarchies()? {
        found.extend(folders(&hierarchy)?.into_iter().filter(|path| is_owned(bed, path)));
    }
    Ok(found)
}

fn namespaces(bed: &str) -> Result<Vec<PathBuf>> {
    let folder = Path::new("/run/netns");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).at("listing", folder)?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| is_owned(bed, path)).collect())
}

fn is_owned(bed: &str, path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| config::owns(bed, name))
}

fn folders(parent: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(parent).at("listing", parent)?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}
