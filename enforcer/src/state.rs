//! What must survive a restart: the numbers that were given. IO.
//!
//! That the file is there also says that this node has enforced before. It need not survive a loss of power:
//! then the kernel's maps are gone as well.

use std::io;
use std::path::{Path, PathBuf};

use durward_plan::Numbers;
use thiserror::Error;

/// Why the state could not be kept.
#[derive(Debug, Error)]
#[error("{path}: {source}: the enforcer's state folder must be on the node and writable")]
pub struct StateError {
    path: PathBuf,
    source: io::Error,
}

/// The file with the state.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    saved: Option<Numbers>,
}

impl State {
    /// Reads what an earlier run has left.
    ///
    /// # Errors
    ///
    /// [`StateError`] if the folder cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let path = folder.join("numbers.json");
        let failed = |source| StateError { path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let saved = match std::fs::read(&path) {
            // Half a file is none: the numbers in the kernel are stepped over then.
            Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, path = %path.display(), "the numbers given before cannot be read");
                Numbers::default()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path, saved })
    }

    /// The numbers that were given; none if this node never enforced.
    pub fn numbers(&self) -> Option<&Numbers> {
        self.saved.as_ref()
    }

    /// Keeps the numbers. To be called before any of them is used.
    ///
    /// # Errors
    ///
    /// [`StateError`] if they cannot be written.
    pub fn save(&mut self, numbers: &Numbers) -> Result<(), StateError> {
        if self.saved.as_ref() == Some(numbers) {
            return Ok(());
        }
        let failed = |source| StateError { path: self.path.clone(), source };
        let bytes = serde_json::to_vec(numbers).map_err(|error| failed(error.into()))?;
        let new = self.path.with_extension("new");
        std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, &self.path)).map_err(failed)?;
        self.saved = Some(numbers.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::open(folder.path()).unwrap();
        assert_eq!(state.numbers(), None);
        state.save(&Numbers::default()).unwrap();
        assert_eq!(State::open(folder.path()).unwrap().numbers(), Some(&Numbers::default()));
    }

    #[test]
    fn a_spoilt_file_still_says_that_the_node_has_enforced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("numbers.json"), "{").unwrap();
        assert_eq!(State::open(folder.path()).unwrap().numbers(), Some(&Numbers::default()));
    }
}
