//! An established TCP stream (iperf3) while policies change that go on allowing it, and while none do, by turns (IO).

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use durward_e2e::{Bed, Pod, Result, wait};
use serde_json::{Value, json};

use crate::{Figures, NAMESPACE, allow_client, policy};

const ROUNDS: usize = 5;
const SECONDS: &str = "8";
const PORT: &str = "5201";

pub(crate) fn measure(bed: &Bed, client: &Pod, server: &Pod) -> Result<Figures> {
    // In force all the time, so that the stream is judged.
    bed.apply(&policy("allow", &allow_client()).to_string())?;
    let [mut calm, mut busy] = [const { Vec::new() }; 2];
    let mut changes = 0;
    for _ in 0..ROUNDS {
        calm.push(transfer(client, server)?);
        let done = AtomicBool::new(false);
        busy.push(thread::scope(|scope| {
            let changing = scope.spawn(|| change(bed, &done));
            let again = transfer(client, server);
            done.store(true, Ordering::Relaxed);
            changes += changing.join().unwrap()?;
            again
        })?);
    }
    println!(
        "segments sent again in {ROUNDS} streams of {SECONDS} s: {calm:?} without, {busy:?} with {changes} changes of policy"
    );
    let figures = json!({
        "retransmits_without": calm.iter().sum::<u64>(), "retransmits_with": busy.iter().sum::<u64>(),
        "changes_during_streams": changes,
    });
    Ok(figures.as_object().cloned().unwrap())
}

/// A second policy comes and goes; the first one allows the stream all the time.
fn change(bed: &Bed, done: &AtomicBool) -> Result<usize> {
    let other = policy("other", &json!([{"ports": [{"port": 80}]}, allow_client()[0]])).to_string();
    let mut changes = 0;
    while !done.load(Ordering::Relaxed) {
        bed.apply(&other)?;
        bed.kubectl(&["-n", NAMESPACE, "delete", "networkpolicy", "other"])?;
        changes += 2;
    }
    Ok(changes)
}

/// How many segments of one stream were sent again.
fn transfer(client: &Pod, server: &Pod) -> Result<u64> {
    thread::scope(|scope| {
        // Ends after one stream, and if none ever comes.
        let serve = ["-s", "-1", "--idle-timeout", "120", "-p", PORT];
        let serving = scope.spawn(move || server.network.command("iperf3", &serve));
        let address = server.v4.to_string();
        let again = wait("iperf3 transfers", || {
            let run = ["-J", "-c", &address, "-p", PORT, "-t", SECONDS];
            let report = client.network.command("iperf3", &run).map_err(|error| error.to_string())?;
            let value: Value = serde_json::from_str(&report).map_err(|error| error.to_string())?;
            // Without a server, which may not listen yet, it reports an error.
            value["end"]["sum_sent"]["retransmits"].as_u64().ok_or(report)
        })?;
        serving.join().unwrap().map(|_| again)
    })
}
