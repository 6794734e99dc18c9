//! The folder in which runtimes name network namespaces: which file is which. IO.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use durward_proto::Digest;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// A namespace's file and inode. Inodes come again; runtimes name each file anew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) file: String,
    pub(crate) inode: u64,
}

impl Name {
    /// A number that no other namespace has.
    pub(crate) fn identity(&self) -> u64 {
        let Digest(bytes) = Digest::of("netns", [self.file.as_bytes(), &self.inode.to_be_bytes()]);
        bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// What the folder holds.
#[derive(Debug)]
pub(crate) struct Listing {
    /// One name of each namespace, and its file; none if it is listed and cannot be opened.
    pub(crate) namespaces: BTreeMap<Name, Option<File>>,
    /// A file that is listed and cannot be opened, and why.
    pub(crate) unopened: Option<(PathBuf, io::Error)>,
}

/// Lists the folder. A namespace keeps the name by which it is known while that is listed, whatever other names
/// it gets (`ip netns attach` gives one); a new one has the first of its names.
pub(crate) fn list(folder: &Path, known: &BTreeSet<Name>) -> io::Result<Listing> {
    let mut names = BTreeMap::new();
    let mut unopened = None;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        match open(&entry.path()) {
            Ok(None) => {}
            Ok(Some((inode, opened))) => {
                names.insert(Name { file, inode }, Some(opened));
            }
            Err(error) => {
                // Nothing says that it is another namespace now.
                names.extend(known.iter().filter(|name| name.file == file).map(|name| (name.clone(), None)));
                unopened = Some((entry.path(), error));
            }
        }
    }
    let (old, new): (Vec<_>, Vec<_>) = names.into_iter().partition(|(name, _)| known.contains(name));
    let mut named = BTreeSet::new();
    let namespaces = old.into_iter().chain(new).filter(|(name, _)| named.insert(name.inode)).collect();
    Ok(Listing { namespaces, unopened })
}

/// A namespace's inode and file. A file that went meanwhile, or on which nothing is mounted yet, is none.
fn open(path: &Path) -> io::Result<Option<(u64, File)>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    Ok(Some((file.metadata()?.ino(), file)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(listing: &Listing) -> Vec<&str> {
        listing.namespaces.keys().map(|name| name.file.as_str()).collect()
    }

    #[test]
    fn a_namespace_keeps_its_first_name() {
        let folder = tempfile::tempdir().unwrap();
        let name = |file: &str| symlink("/proc/self/ns/net", folder.path().join(file)).unwrap();
        name("m");
        std::fs::write(folder.path().join("nothing-mounted"), "").unwrap();
        symlink("/proc/self/ns/gone", folder.path().join("gone")).unwrap();
        let first = list(folder.path(), &BTreeSet::new()).unwrap();
        assert_eq!((names(&first), first.unopened.is_none()), (vec!["m"], true));

        let known: BTreeSet<Name> = first.namespaces.into_keys().collect();
        name("a");
        name("z");
        assert_eq!(names(&list(folder.path(), &known).unwrap()), ["m"]);
        assert_eq!(names(&list(folder.path(), &BTreeSet::new()).unwrap()), ["a"]);
        std::fs::remove_file(folder.path().join("m")).unwrap();
        assert_eq!(names(&list(folder.path(), &known).unwrap()), ["a"]);
    }

    #[test]
    fn what_cannot_be_read_has_not_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod");
        // It leads to itself: not even root can open it.
        symlink(&path, &path).unwrap();
        symlink("/proc/self/ns/net", folder.path().join("other")).unwrap();
        let known =
            BTreeSet::from([Name { file: "pod".into(), inode: 7 }, Name { file: "gone".into(), inode: 8 }]);
        let listing = list(folder.path(), &known).unwrap();
        assert_eq!(names(&listing), ["other", "pod"]);
        assert_eq!(listing.unopened.unwrap().0, path);

        assert!(list(&folder.path().join("none"), &known).is_err());
    }
}
