//! What the enforcer knows, for people: JSON from the kernel's pins and from the running enforcer. IO.
//!
//! The running enforcer tells its view and findings through a socket in its state folder; without it the
//! maps are shown alone.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use durward_bpf::{DataPath, LoadError, MapError, Options};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::config::Places;
use crate::endpoints::Findings;
use crate::subscribe::Synced;

/// Why nothing could be shown.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The pins cannot be opened.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The maps cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// They cannot be written as JSON.
    #[error("cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("enforcer.sock")
}

/// Everything: the view and the findings of the running enforcer, and the kernel's maps.
///
/// # Errors
///
/// [`DumpError`] if there are pins, but they cannot be read.
pub fn dump(places: &Places) -> Result<Value, DumpError> {
    let mut told = ask(&places.state_dir).unwrap_or_else(
        |error| json!({ "view": null, "endpoints": null, "note": format!("no enforcer runs here: {error}") }),
    );
    // To open the maps would make them, on a node that has none.
    let maps = match places.bpffs.join("durward").exists() {
        true => serde_json::to_value(DataPath::open(&places.bpffs, Options::default())?.dump()?)?,
        false => Value::Null,
    };
    told["maps"] = maps;
    Ok(told)
}

fn ask(state_dir: &Path) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket(state_dir))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Tells whoever connects what is known.
///
/// # Errors
///
/// If the socket cannot be made.
pub async fn serve(
    state_dir: PathBuf,
    views: watch::Receiver<Option<Synced>>,
    findings: watch::Receiver<Option<Arc<Findings>>>,
) -> io::Result<()> {
    let path = socket(&state_dir);
    // An earlier run's; nobody listens there.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        let (view, findings) = (views.borrow().clone(), findings.borrow().clone());
        let text = json!({
            "version": view.as_ref().map(|synced| synced.version),
            "view": view.as_ref().map(|synced| &*synced.view),
            "endpoints": findings.as_deref().map(|findings| &findings.found),
        })
        .to_string();
        tokio::spawn(async move {
            // Whoever asked may have gone.
            let _ = stream.write_all(text.as_bytes()).await;
        });
    }
}
