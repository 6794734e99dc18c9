//! The log of verdicts: `policy_action.log`.
//!
//! ```text
//!   decide   is it logged, with which policies?      line     a verdict as one line of JSON      (pure)
//!   budget   at most so many lines a second          summary  what was suppressed, as a line     (pure)
//!   file     append, rotate, mend                    writer   a thread and its bounded queue     (IO)
//!   written  which lines does the file hold already? (IO)
//! ```
//!
//! Nothing here ever makes its caller wait for a disk: [`Log::push`] takes a line or refuses it at once.

mod budget;
mod decide;
mod file;
mod line;
mod summary;
mod time;
mod writer;
mod written;

pub use budget::Budget;
pub use decide::allow;
pub use file::{FileError, LogFile, Rotation};
pub use line::{Connection, Disposition, End, Line, Service};
pub use summary::{Summary, Suppressed};
pub use writer::{Full, Log, Losses};
pub use written::{Fingerprint, written};

/// The name of the file that is written to.
pub const FILE_NAME: &str = "policy_action.log";
