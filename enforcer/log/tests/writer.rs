//! The writer over real files: what waits is written, what is lost is counted and told, and nobody waits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use durward_log::{
    Connection, Disposition, End, FILE_NAME, Fingerprint, Full, Line, Log, Losses, Rotation, written,
};
use durward_proto::{Direction, Policy};
use nix::sys::stat::Mode;

const PATIENCE: Duration = Duration::from_secs(120);

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn start(folder: &Path) -> Log {
    Log::start(folder.to_owned(), Rotation::default(), "node-1".into()).unwrap()
}

fn denial(port: u16, at_ns: i64) -> Line {
    Line {
        connection: Connection {
            src: ([10, 0, 0, 1], port).into(),
            dest: ([10, 0, 0, 2], 80).into(),
            protocol: 6,
            direction: Direction::Ingress,
        },
        disposition: Disposition::Deny(vec![Policy {
            namespace: "a".into(),
            name: "p".into(),
            logged: false,
        }]),
        src: End::Instance([10, 0, 0, 1].into()),
        dest: End::Instance([10, 0, 0, 2].into()),
        service: None,
        count: 2,
        node: "node-1".into(),
        at_ns,
    }
}

/// Pushes until the queue is full; gives what went in.
fn fill(log: &mut Log) -> Vec<String> {
    let line = |number: usize| format!("{{\"number\":{number}}}\n");
    (0..).map(line).take_while(|line| log.push(line.clone()) != Err(Full)).collect()
}

#[test]
fn what_waits_is_written_when_the_log_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = start(folder.path());
    for number in 1..=5000 {
        assert_eq!(log.push(format!("{number}\n")), Ok(number));
    }
    assert_eq!(log.close(PATIENCE), 5000);
    let content = fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
    assert_eq!(content, (1..=5000).map(|number| format!("{number}\n")).collect::<String>());
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_and_told_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    symlink("/dev/full", &path).unwrap();
    let mut log = start(folder.path());
    log.push("first\n".into()).unwrap();
    let problem = until("the failure", || log.problem());
    assert!(problem.starts_with(&format!("cannot write to {}: No space left", path.display())), "{problem}");
    let waiting = fill(&mut log);
    assert_eq!(log.losses(), Losses { queue: 0, file: 1 });
    assert_eq!(log.settled(), 0);

    fs::remove_file(&path).unwrap();
    let all = 1 + waiting.len() as u64;
    until("what waits to be written", || (log.settled() == all).then_some(()));
    assert_eq!(log.problem(), None);
    assert_eq!(log.close(PATIENCE), all);
    let content = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<_> = content.lines().map(|line| format!("{line}\n")).collect();
    assert_eq!(lines.remove(0), "first\n");
    let told = lines.remove(0);
    assert!(told.starts_with(r#"{"lost":{"queue":0,"file":1},"node_name":"node-1","timestamp":""#), "{told}");
    assert_eq!(lines, waiting);
}

#[test]
fn a_slow_disk_makes_nobody_wait() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    // Nobody reads: the first line hangs in the kernel for as long as we like.
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut log = start(folder.path());
    let waiting = fill(&mut log);
    assert_eq!(log.losses(), Losses { queue: 1, file: 0 });
    assert_eq!(log.problem(), None);

    let (send, lines) = channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(File::open(path).unwrap()).lines() {
            send.send(line.unwrap() + "\n").unwrap();
        }
    });
    let next = || lines.recv_timeout(PATIENCE).unwrap();
    let mut read: Vec<_> = (0..=waiting.len()).map(|_| next()).collect();
    let told = read.remove(1);
    assert!(told.starts_with(r#"{"lost":{"queue":1,"file":0},"#), "{told}");
    assert_eq!(read, waiting);
    assert_eq!(log.close(PATIENCE), waiting.len() as u64);
    reader.join().unwrap();
}

#[test]
fn a_log_that_cannot_be_written_can_be_closed() {
    let folder = tempfile::tempdir().unwrap();
    symlink("/dev/full", folder.path().join(FILE_NAME)).unwrap();
    let mut log = start(folder.path());
    log.push("first\n".into()).unwrap();
    assert_eq!(log.close(PATIENCE), 0);
}

#[test]
fn a_denial_that_was_written_is_recognised_also_in_a_full_file() {
    let folder = tempfile::tempdir().unwrap();
    let second = 1_000_000_000;
    let fingerprint =
        |line: &Line| Fingerprint { connection: line.connection.clone(), at_ns: line.at_ns + 30_000_000 };
    let absent = folder.path().join("absent");
    assert_eq!(written(&absent, &[fingerprint(&denial(1, second))]).unwrap(), [false]);

    let rotation = Rotation { max_bytes: 800, keep: 5 };
    let mut log = Log::start(folder.path().to_owned(), rotation, "node-1".into()).unwrap();
    let lines: Vec<_> = (1..=4).map(|port| denial(port, second)).collect();
    for line in &lines {
        log.push(line.json()).unwrap();
    }
    assert_eq!(log.close(PATIENCE), 4);
    assert!(fs::read_dir(folder.path()).unwrap().count() > 1);
    // The same connection's next window, and one that was not written whole.
    let asked: Vec<_> =
        lines.iter().chain([&denial(1, 6 * second), &denial(5, second)]).map(fingerprint).collect();
    let cut = denial(5, second).json();
    let mut content = fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
    content.push_str(&cut[..cut.len() - 5]);
    fs::write(folder.path().join(FILE_NAME), content).unwrap();
    assert_eq!(written(folder.path(), &asked).unwrap(), [true, true, true, true, false, false]);
}
