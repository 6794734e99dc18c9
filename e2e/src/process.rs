//! Commands that are run to their end, and daemons that go on (IO).

use std::{
    fs,
    io::{Seek, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    thread::{self, ThreadId},
};

use crate::{Error, Namespaces, Result, error::Named};

static CLOSED_BY: OnceLock<ThreadId> = OnceLock::new();

/// From now on only the calling thread starts anything, all others stop where they would. For an interrupted run.
pub(crate) fn close() {
    CLOSED_BY.get_or_init(|| thread::current().id());
}

pub(crate) fn stop_if_closed() {
    while CLOSED_BY.get().is_some_and(|closer| *closer != thread::current().id()) {
        thread::park();
    }
}

/// Runs a command and gives its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    run(command, Stdio::null())
}

/// Runs a command that reads `input`, and gives its standard output.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<String> {
    // By way of a file: a pipe would block both sides as soon as the command stops reading.
    let mut file = tempfile::tempfile().named("making a temporary file")?;
    file.write_all(input.as_bytes()).and_then(|()| file.rewind()).named("writing a temporary file")?;
    run(command, file.into())
}

/// Runs a command with this standard input, and gives its standard output.
pub(crate) fn run(command: &mut Command, input: Stdio) -> Result<String> {
    stop_if_closed();
    let line = describe(command);
    let output = command.stdin(input).output().named(format!("running `{line}`"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = text(&output.stdout) + &text(&output.stderr);
    Err(Error::Command { command: line, status: output.status.to_string(), output: said })
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A program that outlives whoever starts it, until its cgroup is killed.
pub(crate) struct Daemon<'a> {
    /// Where `<name>.log` and `<name>.pid` are written.
    pub(crate) scratch: &'a Path,
    /// All of its descendants stay below this cgroup, which is how they are found in the end.
    pub(crate) cgroup: &'a Path,
    pub(crate) name: &'a str,
}

impl Daemon<'_> {
    /// Starts the command in the calling thread's namespaces.
    pub(crate) fn start(&self, command: &Command) -> Result<()> {
        stop_if_closed();
        // Joins the cgroup before the program runs, so that no child of it escapes.
        let script = r#"echo $$ >"$1/cgroup.procs" && echo $$ >"$2" && shift 2 && exec "$@""#;
        let log = self.scratch.join(format!("{}.log", self.name));
        let file = fs::File::create(&log).at("creating", &log)?;
        let mut daemon = Command::new("setsid");
        daemon
            .args(["--fork", "sh", "-c", script, "sh"])
            .arg(self.cgroup)
            .arg(pid_file(self.scratch, self.name));
        daemon.arg(command.get_program()).args(command.get_args());
        daemon.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let out = file.try_clone().at("opening", &log)?;
        let status = daemon.stdin(Stdio::null()).stdout(out).stderr(file).status();
        let status = status.named(format!("starting {}", self.name))?;
        if status.success() { Ok(()) } else { Err(Error::unfit(format!("starting {}: {status}", self.name))) }
    }

    /// Starts the command in the given namespaces.
    pub(crate) fn start_in(&self, namespaces: &Namespaces, command: &Command) -> Result<()> {
        namespaces.run(|| self.start(command))?
    }
}

fn pid_file(scratch: &Path, daemon: &str) -> PathBuf {
    scratch.join(format!("{daemon}.pid"))
}

/// The process id of a daemon, once it has one.
pub(crate) fn pid(scratch: &Path, daemon: &str) -> Option<u32> {
    fs::read_to_string(pid_file(scratch, daemon)).ok()?.trim().parse().ok()
}

/// Whether a daemon ran, and runs no more.
pub(crate) fn ended(scratch: &Path, daemon: &str) -> bool {
    pid(scratch, daemon).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// The end of a daemon's log, and whether it still runs.
pub(crate) fn state(scratch: &Path, daemon: &str) -> String {
    let log = fs::read(scratch.join(format!("{daemon}.log"))).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(15)..].join("\n");
    let state = if ended(scratch, daemon) { "ended" } else { "running" };
    format!("--- {daemon} ({state}), end of its log:\n{tail}")
}
