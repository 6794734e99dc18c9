//! What can go wrong on a test bed (pure).

use std::{io, path::Path, time::Duration};

/// The result of everything that a bed does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a bed could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried, with the object's name.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A command ran and failed.
    #[error("`{command}` ended with {status}:\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// What it said.
        output: String,
    },
    /// A condition was waited for in vain.
    #[error("{what}: not after {} s\n{state}", after.as_secs())]
    Deadline {
        /// The condition.
        what: String,
        /// How long it was waited for.
        after: Duration,
        /// What was seen instead.
        state: String,
    },
    /// The bed, or what was asked of it, is not as it must be.
    #[error("{0}")]
    Unfit(String),
}

impl Error {
    pub(crate) fn unfit(reason: impl Into<String>) -> Self {
        Self::Unfit(reason.into())
    }
}

/// Gives an operating system's error the name of what was tried.
pub(crate) trait Named<T> {
    fn named(self, what: impl Into<String>) -> Result<T>;
    fn at(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Named<T> for std::result::Result<T, E> {
    fn named(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|error| Error::System { what: what.into(), source: error.into() })
    }

    fn at(self, doing: &str, path: &Path) -> Result<T> {
        self.named(format!("{doing} {}", path.display()))
    }
}
