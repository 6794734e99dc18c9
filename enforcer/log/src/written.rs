//! Which lines does the file hold already? IO.
//!
//! A window of denials is freed in the kernel after its line is written. Who is killed in between leaves a
//! window behind of which nobody knows whether it was written, but the file itself, so it is asked.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use crate::line::{Connection, ConnectionJson};
use crate::writer::MAX_QUEUED_BYTES;
use crate::{FILE_NAME, file, time};

/// How far back a line can be that was written before its window was freed: what the queue holds, twice.
const TAIL_BYTES: u64 = 2 * MAX_QUEUED_BYTES as u64;
/// How much the wall clock may have been slewed between two readings of one time.
const SLEW_NS: u64 = 250_000_000;

/// What tells one denial's line from any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// The connection.
    pub connection: Connection,
    /// When its first packet came, in nanoseconds since 1970.
    pub at_ns: i64,
}

#[derive(Deserialize)]
struct Tail {
    connection: ConnectionJson,
    disposition: String,
    timestamp: String,
}

/// For each denial, whether its line is in the newest lines of the files in this folder.
///
/// # Errors
///
/// The system's, if a file that is there cannot be read.
pub fn written(folder: &Path, denials: &[Fingerprint]) -> io::Result<Vec<bool>> {
    let wanted: Vec<_> =
        denials.iter().map(|denial| (ConnectionJson::from(&denial.connection), denial.at_ns)).collect();
    let mut found = vec![false; denials.len()];
    let older = match file::rotated(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        names => names?,
    };
    let mut left = TAIL_BYTES;
    for name in [FILE_NAME].into_iter().chain(older.iter().rev().map(String::as_str)) {
        let mut file = match File::open(folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(left)))?;
        // Lines that do not read as a verdict's are none: the first one may be cut, others are summaries.
        for line in BufReader::new(file.take(left)).split(b'\n') {
            let Ok(tail) = serde_json::from_slice::<Tail>(&line?) else { continue };
            let Some(at_ns) = time::parse(&tail.timestamp) else { continue };
            for (found, (connection, wanted_ns)) in found.iter_mut().zip(&wanted) {
                let same = tail.disposition == "deny" && tail.connection == *connection;
                *found |= same && wanted_ns.abs_diff(at_ns) <= SLEW_NS;
            }
        }
        left = left.saturating_sub(bytes);
        if left == 0 {
            break;
        }
    }
    Ok(found)
}
