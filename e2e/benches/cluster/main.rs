//! Figures of a whole cluster: how soon a policy is in force, what the daemons hold in memory, and what a change of policy
//! does to a TCP stream that it goes on allowing. Needs root. The last line is JSON (IO).

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]

mod propagation;
mod resident;
mod transfer;

use std::process::ExitCode;

use durward_e2e::{Bed, Config, Pod, Result, end_with_parent, install};
use serde_json::{Map, Value};

/// The namespace of everything that is measured.
const NAMESPACE: &str = "bench";

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
    let bed = Bed::up(Config::new("bench").nodes(2))?;
    install(&bed, &[])?;
    bed.namespace(NAMESPACE, &[])?;
    for (name, node) in [("client", "n1"), ("server", "n2")] {
        bed.run_pod(&format!("{NAMESPACE}/{name}"), node, &[("app", name)])?;
    }
    let [client, server] = ["client", "server"].map(|name| bed.pod(&format!("{NAMESPACE}/{name}")).unwrap());

    let mut figures = Map::new();
    for measure in [propagation::measure, transfer::measure, resident::measure] {
        figures.extend(measure(&bed, &client, &server)?);
    }
    println!("{}", Value::Object(figures));
    Ok(())
}

/// What a part of the benchmark measures.
type Figures = Map<String, Value>;

/// The value below which this share of all lies.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len() - 1;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    sorted[((last as f64 * share).ceil() as usize).min(last)]
}

/// A NetworkPolicy for the server's pod.
fn policy(name: &str, ingress: &Value) -> Value {
    serde_json::json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": ingress},
    })
}

/// The server's pod, named as a pod of the client's policies.
fn allow_client() -> Value {
    serde_json::json!([{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}])
}

/// A client of the API server; to be called, and used, on the control plane's host.
async fn api(bed: &Bed) -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(bed.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

/// Runs a task in the control plane's namespaces, where the API server is reached.
fn on_control_plane<T: Send>(bed: &Bed, task: impl Future<Output = T> + Send) -> Result<T> {
    bed.on("cp", || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
    })
}

/// The addresses are those of pods that are up.
fn target(server: &Pod, port: u16) -> std::net::SocketAddr {
    server.sockets(port)[0]
}
