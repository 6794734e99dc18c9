//! What the controller needs to start in a cluster that is full: the real program, on a real API server with 20,000 pods
//! and 5,000 policies. Needs root. The last line is JSON (IO).

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]

mod asked;
mod daemon;
mod fill;
#[path = "../../tests/controller/node.rs"]
#[expect(dead_code, reason = "the tests' nodes do more than to subscribe")]
mod node;

use std::{process::ExitCode, time::Instant};

use durward_e2e::{Bed, Config, Result, end_with_parent};
use serde_json::json;

const CRD: &str = include_str!("../../../crds/networkloggings.yaml");

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    end_with_parent()?;
    let bed = Bed::up(Config::new("bench-controller"))?;
    bed.apply(CRD)?;
    bed.wait("NetworkLogging is served", || bed.kubectl(&["get", "nl"]).map(Some))?;
    bed.on("cp", || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let begin = Instant::now();
        runtime.block_on(fill::fill(&bed));
        println!("the API server is full after {:.0} s", begin.elapsed().as_secs_f64());
    })?;
    // A first run, so that the API server has done once what it does once.
    for _ in 0..2 {
        bed.on("cp", || tokio::runtime::Runtime::new().unwrap().block_on(start(&bed)))??;
    }
    Ok(())
}

/// Starts the controller, and says what that took.
async fn start(bed: &Bed) -> Result<()> {
    let before = asked::count(bed)?;
    let daemon = daemon::Daemon::start(bed);
    let node = daemon.node("node-1").await;
    let in_sync = daemon.age();
    daemon.is_ready().await;
    let ready = daemon.age();
    let asked = asked::since(&before, &asked::count(bed)?);
    let [peak, now] = ["VmHWM", "VmRSS"].map(|name| daemon.resident_mb(name));
    println!(
        "a node with {} pods and {} addresses is in sync after {:.2} s, ready is said after {:.2} s",
        node.view.pods.len(),
        node.view.addresses.len(),
        in_sync.as_secs_f64(),
        ready.as_secs_f64(),
    );
    println!(
        "the daemon has {now:.1} MB resident, at most {peak:.1}; its own CPU time is {:.2} s",
        daemon.cpu_s()
    );
    println!("lists and watches of each kind: {asked:?}");
    let most = |each: fn(&(i64, i64)) -> i64| asked.values().map(each).max().unwrap();
    println!(
        "{}",
        json!({
            "controller_sync_s": in_sync.as_secs_f64(), "controller_ready_s": ready.as_secs_f64(),
            "controller_peak_mb": peak, "controller_rss_mb": now,
            "controller_lists": most(|&(lists, _)| lists), "controller_watches": most(|&(_, watches)| watches),
        })
    );
    Ok(())
}
