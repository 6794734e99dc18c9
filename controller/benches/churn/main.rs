//! What the daemon costs while the *huge* cluster changes: the real program, between an API server that
//! this process plays and the nodes that this process is. Does IO. The last line is one JSON object.
//!
//! CPU time and memory are the daemon's own, as the kernel counts them for its process. An event's time
//! runs from when its line is handed to the watch's connection until a node's gRPC client has the
//! message, both by the clock of this process. The nodes have one thread, and do no more than HTTP/2 and
//! the measurement need: else their own need of CPU would be most of what is measured.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]

mod connection;
mod crowd;
mod daemon;
mod events;
mod json;
mod nodes;
#[path = "../../engine/benches/engine/scenario.rs"]
#[expect(dead_code, reason = "the engine's own benchmark needs more of it")]
mod scenario;
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daemon::Daemon;
use events::Sent;
use nodes::Latencies;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// How many nodes subscribe; the cluster has more.
const SUBSCRIBERS: usize = 5_000;
/// Each of two ports.
const SERVICES: usize = 10_000;
const EVENTS_PER_SECOND: usize = 1_000;
const SECONDS: usize = 60;
/// What has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() {
    durward_controller::raise_open_files().unwrap();
    let runtime = Runtime::new().unwrap();
    let nodes = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(measure_services(&nodes));
    runtime.block_on(measure_crowd(&nodes));
    runtime.block_on(measure(&nodes));
}

/// What it takes the daemon until all nodes have their views where there are Services, of which each hears. The nodes
/// only take what comes: to read it all would cost this machine more than is measured.
async fn measure_services(runtime_of_nodes: &Runtime) {
    let (api, _changes) = server::start(SERVICES, vec![], "pods").await;
    let daemon = Daemon::start(api);
    daemon.is_ready().await;
    let (before, begin) = (daemon.cpu(), Instant::now());
    let opened = runtime_of_nodes.spawn(nodes::open_all(daemon.grpc, SUBSCRIBERS)).await.unwrap();
    let (cpu, seconds) = ((daemon.cpu() - before).as_secs_f64(), begin.elapsed().as_secs_f64());
    println!("{} nodes have their views and {SERVICES} Services after {seconds:.1} s", opened.len());
    println!("  the daemon needed {cpu:.1} s of CPU");
    println!("  {:.0} MB resident, at most {:.0}", daemon.resident_mb("VmRSS"), daemon.resident_mb("VmHWM"));
    println!("{{\"services_cpu_s\":{cpu:.1}}}");
}

/// The most memory that the daemon takes when a policy comes that has pods on many nodes and mentions very many others:
/// what all nodes together are to be told is far more than what any is.
async fn measure_crowd(runtime_of_nodes: &Runtime) {
    let (api, changes) = server::start(0, crowd::pods(), "networkpolicies").await;
    let daemon = Daemon::start(api);
    daemon.is_ready().await;
    let grpc = daemon.grpc;
    let opened = runtime_of_nodes.spawn(nodes::open_all(grpc, crowd::NODES)).await.unwrap();
    let (before, cpu, begin) = (daemon.resident_mb("VmHWM"), daemon.cpu(), Instant::now());
    let begun_anew =
        runtime_of_nodes.spawn(async move { crowd::hear(grpc, opened, &changes).await }).await.unwrap();
    let (most, cpu) = (daemon.resident_mb("VmHWM"), (daemon.cpu() - cpu).as_secs_f64());
    let seconds = begin.elapsed().as_secs_f64();
    println!("{} nodes were told what one policy mentions after {seconds:.1} s", crowd::NODES);
    println!("  {begun_anew} began anew; the daemon needed {cpu:.1} s of CPU");
    println!("  at most {before:.0} MB were resident before, and {most:.0} then");
    println!("{{\"crowd_mb\":{most:.0}}}");
}

async fn measure(runtime_of_nodes: &Runtime) {
    let sent = Arc::new(Sent::new());
    let (api, changes) = server::start(0, vec![], "pods").await;
    let begin = Instant::now();
    let daemon = Daemon::start(api);
    daemon.is_ready().await;
    println!("in sync with the API server after {:.1} s", begin.elapsed().as_secs_f64());
    println!("  {:.0} MB resident, at most {:.0}", daemon.resident_mb("VmRSS"), daemon.resident_mb("VmHWM"));

    let (latencies, counts) = (Arc::new(Latencies::default()), Arc::new(AtomicBool::new(false)));
    let begin = Instant::now();
    let opened = runtime_of_nodes.spawn(nodes::open_all(daemon.grpc, SUBSCRIBERS)).await.unwrap();
    let listen = |connection| {
        let listens = nodes::listen(connection, sent.clone(), latencies.clone(), counts.clone());
        runtime_of_nodes.spawn(listens)
    };
    let nodes: Vec<JoinHandle<()>> = opened.into_iter().map(listen).collect();
    println!("{SUBSCRIBERS} nodes have their views after {:.1} s", begin.elapsed().as_secs_f64());

    // As much again first: what grows only once, such as buffers, is there then.
    events::send(&changes, &sent, 0).await;
    counts.store(true, Ordering::Relaxed);
    let (cpu, memory, begin) = (daemon.cpu(), daemon.resident_mb("VmRSS"), Instant::now());
    events::send(&changes, &sent, 1).await;
    let (cores, grown) =
        ((daemon.cpu() - cpu).as_secs_f64() / begin.elapsed().as_secs_f64(), daemon.resident_mb("VmRSS"));
    latencies.settle().await;
    assert!(!nodes.iter().any(|node| node.is_finished()), "a node's stream ended");
    nodes.iter().for_each(JoinHandle::abort);
    latencies.print();
    println!("the daemon has {memory:.0} MB resident before, {grown:.0} after");
    println!(
        "{{\"churn_cores\":{cores:.3},\"churn_p99_ms\":{:.1},\"churn_start_mb\":{memory:.0},\"churn_end_mb\":{grown:.0}}}",
        latencies.quantile_ms(0.99)
    );
}
