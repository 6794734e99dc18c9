//! The file: append whole lines, rotate, mend. IO.
//!
//! The file that readers follow has always the same name. When it is full it is renamed, and the next line goes
//! to a new one: a reader that follows by name reads the old one to its end. No line is cut in two by that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::{FILE_NAME, time};

/// When the file is full, and how many old ones are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// A file that would become larger is full.
    pub max_bytes: u64,
    /// How many full files are kept.
    pub keep: usize,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { max_bytes: 10_000_000, keep: 5 }
    }
}

/// Why a line is not in the file.
#[derive(Debug, Error)]
#[error("cannot {operation} {path}: {source}; verdicts go on, lines wait and then are counted as lost")]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// `policy_action.log` in a folder.
#[derive(Debug)]
pub struct LogFile {
    folder: PathBuf,
    rotation: Rotation,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    identity: (u64, u64),
    bytes: u64,
    /// How much of the line that is being written is in the file already.
    begun: usize,
}

impl LogFile {
    /// The file in this folder; neither need exist.
    pub const fn new(folder: PathBuf, rotation: Rotation) -> Self {
        Self { folder, rotation, open: None }
    }

    /// Appends a line that ends with a newline. What fails can be tried again, with the same line.
    ///
    /// # Errors
    ///
    /// [`FileError`] if the folder, the file or the disk refuses.
    pub fn append(&mut self, line: &str) -> Result<(), FileError> {
        let path = self.folder.join(FILE_NAME);
        let mut open = self.current(&path)?;
        let full = open.bytes > 0 && open.bytes + line.len() as u64 > self.rotation.max_bytes;
        if full && open.begun == 0 {
            self.rotate(&path)?;
            open = self.reopen(&path)?;
        }
        let open = self.open.insert(open);
        while let Some(rest) = line.as_bytes().get(open.begun..).filter(|rest| !rest.is_empty()) {
            match open.file.write(rest) {
                Ok(0) => return Err(failed("write to", &path)(ErrorKind::WriteZero.into())),
                Ok(bytes) => {
                    open.begun += bytes;
                    open.bytes += bytes as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("write to", &path)(error)),
            }
        }
        open.begun = 0;
        Ok(())
    }

    /// Opens the file, if it is not open, so that readers find it before its first line.
    ///
    /// # Errors
    ///
    /// [`FileError`] if the folder or the file refuses.
    pub fn open(&mut self) -> Result<(), FileError> {
        let open = self.current(&self.folder.join(FILE_NAME))?;
        self.open = Some(open);
        Ok(())
    }

    fn current(&mut self, path: &Path) -> Result<Open, FileError> {
        // Somebody may have moved or removed it; who follows the name would miss what we write.
        let found = fs::metadata(path).ok().map(|found| identity(&found));
        match self.open.take() {
            Some(open) if Some(open.identity) == found => Ok(open),
            _ => self.reopen(path),
        }
    }

    fn reopen(&self, path: &Path) -> Result<Open, FileError> {
        fs::create_dir_all(&self.folder).map_err(failed("create", &self.folder))?;
        let file = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
        let mut file = file.map_err(failed("open", path))?;
        let found = file.metadata().map_err(failed("look at", path))?;
        let mut bytes = found.len();
        if found.is_file() && bytes > 0 && last_byte(path).map_err(failed("read", path))? != b'\n' {
            // Somebody was killed in the middle of a line: ours must begin on a new one.
            file.write_all(b"\n").map_err(failed("mend", path))?;
            bytes += 1;
        }
        Ok(Open { file, identity: identity(&found), bytes, begun: 0 })
    }

    fn rotate(&self, path: &Path) -> Result<(), FileError> {
        let mut old = rotated(&self.folder).map_err(failed("list", &self.folder))?;
        // Later than all there are, also if the clock went back: the oldest go first, by their names.
        let newest = old.last().and_then(|name| rotated_at(name));
        let at_ns = newest.map_or(i64::MIN, |at_ns| at_ns + 1).max(time::now_ns());
        let name = rotated_name(at_ns);
        fs::rename(path, self.folder.join(&name)).map_err(failed("rename", path))?;
        old.push(name);
        for name in &old[..old.len().saturating_sub(self.rotation.keep)] {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(failed("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The names of the full files in a folder, oldest first.
pub(crate) fn rotated(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        // A name that does not read as a time is not ours, and not ours to remove.
        names.extend(name.to_str().filter(|name| rotated_at(name).is_some()).map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}

fn rotated_name(at_ns: i64) -> String {
    format!("policy_action-{}.log", time::rfc3339(at_ns).replace(':', "-"))
}

fn rotated_at(name: &str) -> Option<i64> {
    let stamp = name.strip_prefix("policy_action-")?.strip_suffix(".log")?;
    let (day, hour) = stamp.split_once('T')?;
    let at_ns = time::parse(&format!("{day}T{}", hour.replace('-', ":")))?;
    (rotated_name(at_ns) == name).then_some(at_ns)
}

fn identity(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

fn last_byte(path: &Path) -> io::Result<u8> {
    let (mut file, mut last) = (File::open(path)?, [0]);
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last[0])
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).unwrap()
    }

    #[test]
    fn a_full_file_is_renamed_and_no_line_is_lost_or_cut() {
        let folder = tempfile::tempdir().unwrap();
        let rotation = Rotation { max_bytes: 100, keep: 1000 };
        let mut file = LogFile::new(folder.path().to_owned(), rotation);
        let lines: Vec<_> = (0..200).map(|number| format!("line {number}\n")).collect();
        for line in &lines {
            file.append(line).unwrap();
        }
        let old = rotated(folder.path()).unwrap();
        assert!(old.len() > 10, "{old:?}");
        let names = old.iter().map(String::as_str).chain([FILE_NAME]);
        let contents: Vec<_> = names.map(|name| read(folder.path(), name)).collect();
        assert!(contents.iter().all(|content| content.len() <= 100 && content.ends_with('\n')));
        assert_eq!(contents.concat(), lines.concat());
    }

    #[test]
    fn only_the_newest_full_files_are_kept_and_strangers_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let stranger = folder.path().join("policy_action-mine.log");
        fs::write(&stranger, "x").unwrap();
        // The clock went back since this one was full.
        let future = rotated_name(i64::MAX - 1_000_000);
        fs::write(folder.path().join(&future), "old\n").unwrap();
        let mut file = LogFile::new(folder.path().to_owned(), Rotation { max_bytes: 6, keep: 2 });
        for line in ["one\n", "two\n", "three\n"] {
            file.append(line).unwrap();
        }
        let old = rotated(folder.path()).unwrap();
        let contents: Vec<_> = old.iter().map(|name| read(folder.path(), name)).collect();
        assert_eq!(contents, ["one\n", "two\n"]);
        assert_eq!(read(folder.path(), FILE_NAME), "three\n");
        assert!(stranger.exists());
    }

    #[test]
    fn a_line_that_was_cut_by_a_crash_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        fs::write(&path, "whole\n{\"conn").unwrap();
        let mut file = LogFile::new(folder.path().to_owned(), Rotation::default());
        file.append("next\n").unwrap();
        file.append("last\n").unwrap();
        assert_eq!(read(folder.path(), FILE_NAME), "whole\n{\"conn\nnext\nlast\n");
    }

    #[test]
    fn a_file_that_somebody_moved_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = LogFile::new(folder.path().join("deep/er"), Rotation::default());
        file.append("one\n").unwrap();
        let deep = folder.path().join("deep/er");
        fs::rename(deep.join(FILE_NAME), deep.join("moved")).unwrap();
        file.append("two\n").unwrap();
        assert_eq!((read(&deep, "moved"), read(&deep, FILE_NAME)), ("one\n".into(), "two\n".into()));
        fs::remove_dir_all(&deep).unwrap();
        file.append("three\n").unwrap();
        assert_eq!(read(&deep, FILE_NAME), "three\n");
    }

    #[test]
    fn a_folder_that_cannot_be_is_an_error_that_says_so_and_can_be_mended() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("log");
        fs::write(&blocked, "").unwrap();
        let mut file = LogFile::new(blocked.clone(), Rotation::default());
        let error = file.append("one\n").unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot create {}: ", blocked.display())), "{error}");
        fs::remove_file(&blocked).unwrap();
        file.append("one\n").unwrap();
        assert_eq!(read(&blocked, FILE_NAME), "one\n");
    }
}
