//! What the tour shows: headings, commands as they were run, and what they said (IO: standard output).

use serde_json::Value;

use crate::{Bed, Error, Result};

/// Runs commands on the bed and shows them.
#[derive(Debug)]
pub(super) struct Terminal<'a> {
    pub(super) bed: &'a Bed,
}

impl Terminal<'_> {
    pub(super) fn heading(&self, text: &str) {
        println!("\n\x1b[1m━━ {text}\x1b[0m");
    }

    /// What the reader should see in it.
    pub(super) fn note(&self, text: &str) {
        println!("\x1b[32m✔ {text}\x1b[0m");
    }

    /// Shows a command, and runs it.
    pub(super) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.shown("kubectl", args, || self.bed.kubectl(args))
    }

    /// Shows a command, and runs it.
    pub(super) fn helm(&self, shown: &[&str], args: &[&str]) -> Result<String> {
        self.shown("helm", shown, || self.bed.helm(args))
    }

    /// Shows a manifest, and applies it.
    pub(super) fn apply(&self, manifest: &str) -> Result<String> {
        let command = format!("kubectl apply -f - <<'EOF'\n{}\nEOF", manifest.trim());
        self.say(&command);
        self.answer(self.bed.apply(manifest))
    }

    /// Changes the NetworkLogging object, and waits until all nodes run it.
    pub(super) fn logging(&self, cluster: &Value) -> Result<()> {
        let patch = serde_json::json!({"spec": {"cluster": cluster}}).to_string();
        self.kubectl(&["patch", "nl", "default", "--type=merge", "-p", &patch])?;
        self.bed.wait("all nodes run the NetworkLogging object", || {
            let object = self.bed.json(&["get", "nl", "default"])?;
            let status = &object["status"];
            let current = status["observedGeneration"] == object["metadata"]["generation"];
            let everywhere = status["nodesTotal"].as_u64().is_some_and(|total| total > 0)
                && status["nodesApplied"] == status["nodesTotal"];
            let unready = || Error::Unfit(format!("its status is {status}"));
            if current && everywhere { Ok(Some(())) } else { Err(unready()) }
        })?;
        self.kubectl(&["get", "nl"]).map(drop)
    }

    pub(super) fn say(&self, command: &str) {
        println!("\x1b[36m$ {command}\x1b[0m");
    }

    fn shown(&self, program: &str, args: &[&str], run: impl FnOnce() -> Result<String>) -> Result<String> {
        let words: Vec<_> = std::iter::once(program).chain(args.iter().copied()).map(quoted).collect();
        self.say(&words.join(" "));
        self.answer(run())
    }

    fn answer(&self, result: Result<String>) -> Result<String> {
        if let Ok(text) = &result {
            print!("{text}");
        }
        result
    }
}

/// As it is typed in a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}
