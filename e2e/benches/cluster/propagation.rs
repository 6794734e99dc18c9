//! From the API server's answer to a new policy until the kernel denies: a flow of datagrams between two nodes, one a
//! millisecond, and the first of them that is not answered any more (IO).

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use durward_e2e::{Bed, Pod, Result, Server, wait};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, PostParams},
};
use serde_json::json;

use crate::{Figures, NAMESPACE, api, on_control_plane, policy, quantile, target};

const CHANGES: usize = 200;
const PORT: u16 = 7000;
const PACE: Duration = Duration::from_millis(1);
/// So long without an answer, while datagrams are sent, is a denial.
const SILENCE: Duration = Duration::from_millis(300);

/// Numbered datagrams to a server that echoes them.
#[derive(Default)]
struct Flow {
    sent: Mutex<Vec<Instant>>,
    /// How many datagrams lie up to the last one that was echoed.
    echoed: AtomicUsize,
    stop: AtomicBool,
}

impl Flow {
    fn run(&self, to: SocketAddr) {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(to).unwrap();
        socket.set_nonblocking(true).unwrap();
        while !self.stop.load(Ordering::Relaxed) {
            let number = {
                let mut sent = self.sent.lock().unwrap();
                sent.push(Instant::now());
                sent.len() as u64
            };
            // What cannot be sent counts as what is not echoed.
            let _ = socket.send(&number.to_be_bytes());
            let mut answer = [0; 8];
            while socket.recv(&mut answer).is_ok_and(|length| length == answer.len()) {
                let echoed = usize::try_from(u64::from_be_bytes(answer)).unwrap();
                self.echoed.fetch_max(echoed, Ordering::Relaxed);
            }
            thread::sleep(PACE);
        }
    }

    /// When the first datagram was sent that is not echoed any more; none while they are.
    fn silent_since(&self) -> Option<Instant> {
        let sent = self.sent.lock().unwrap();
        let first = *sent.get(self.echoed.load(Ordering::Relaxed))?;
        (sent.last()?.duration_since(first) >= SILENCE).then_some(first)
    }

    fn flows(&self) -> Result<()> {
        let before = self.echoed.load(Ordering::Relaxed);
        wait("datagrams are echoed", || {
            let echoed = self.echoed.load(Ordering::Relaxed);
            if echoed > before + 20 { Ok(()) } else { Err(format!("{echoed} are")) }
        })
    }
}

pub(crate) fn measure(bed: &Bed, client: &Pod, server: &Pod) -> Result<Figures> {
    let _echo = Server::start(&server.network, PORT)?;
    let flow = Flow::default();
    let latencies = thread::scope(|scope| {
        scope.spawn(|| client.network.run(|| flow.run(target(server, PORT))));
        let latencies = on_control_plane(bed, changes(bed, &flow));
        flow.stop.store(true, Ordering::Relaxed);
        latencies
    })??;
    let mut sorted = latencies;
    sorted.sort_by(f64::total_cmp);
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&sorted, share));
    println!(
        "a policy is in force after: median {p50:.1} ms, p99 {p99:.1} ms, at most {max:.1} ms ({CHANGES} changes)"
    );
    let figures = json!({"changes": CHANGES, "propagation_p50_ms": p50, "propagation_p99_ms": p99, "propagation_max_ms": max});
    Ok(figures.as_object().cloned().unwrap())
}

async fn changes(bed: &Bed, flow: &Flow) -> Result<Vec<f64>> {
    let kind = GroupVersionKind::gvk("networking.k8s.io", "v1", "NetworkPolicy");
    let policies: Api<DynamicObject> =
        Api::namespaced_with(api(bed).await, NAMESPACE, &ApiResource::from_gvk(&kind));
    let deny: DynamicObject = serde_json::from_value(policy("deny", &json!([]))).unwrap();
    let mut latencies = Vec::new();
    for change in 1..=CHANGES {
        flow.flows()?;
        policies.create(&PostParams::default(), &deny).await.unwrap();
        let answered = Instant::now();
        let denied = wait("the flow is denied", || flow.silent_since().ok_or_else(String::new))?;
        // It may be in force before we hear that it was accepted.
        latencies.push(denied.saturating_duration_since(answered).as_secs_f64() * 1e3);
        policies.delete("deny", &DeleteParams::default()).await.unwrap();
        if change % 50 == 0 {
            println!("{change} of {CHANGES} changes");
        }
    }
    Ok(latencies)
}
