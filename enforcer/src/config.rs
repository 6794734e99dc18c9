//! What can be chosen on the command line, or in the environment. Pure.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use durward_log::Rotation;

/// Enforces NetworkPolicy on this node, in eBPF, and keeps the book of verdicts.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Enforce until told to stop; enforcement goes on after that.
    Run(Box<Run>),
    /// Print view, maps and endpoints as JSON.
    Dump(Dump),
}

/// Where things are on the node.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// The BPF file system.
    #[arg(long, env = "DURWARD_BPFFS", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// What must survive a restart: the numbers given, and the view that was enforced last.
    #[arg(long, env = "DURWARD_STATE_DIR", default_value = "/var/lib/durward")]
    pub state_dir: PathBuf,
}

/// How to run.
#[derive(Clone, Debug, Args)]
pub struct Run {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub places: Places,
    /// The controller's gRPC address. Without it, that of the Service whose environment the kubelet gives.
    #[arg(long, env = "DURWARD_CONTROLLER")]
    pub controller: Option<String>,
    /// This node's name.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Where the container runtime pins the pods' network namespaces.
    #[arg(long, env = "DURWARD_NETNS_DIR", default_value = "/run/netns")]
    pub netns_dir: PathBuf,
    /// The proc file system with the host's processes.
    #[arg(long, env = "DURWARD_PROC", default_value = "/proc")]
    pub proc: PathBuf,
    /// Where the log of verdicts is written.
    #[arg(long, env = "DURWARD_LOG_DIR", default_value = "/var/log/network")]
    pub log_dir: PathBuf,
    /// How many lines a second the log takes, of allowed connections and of denials each; more are counted.
    #[arg(long, env = "DURWARD_LOG_LINES_PER_SECOND", default_value_t = 500)]
    pub log_lines_per_second: usize,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub log_files: LogFiles,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "DURWARD_METRICS_LISTEN", default_value = "[::]:9445")]
    pub metrics_listen: SocketAddr,
    /// How calls to Services are judged that pods make which are isolated on egress.
    #[arg(long, env = "DURWARD_SERVICES", value_enum, default_value = "auto")]
    pub services: Services,
    /// Where kube-proxy tells its mode.
    #[arg(long, env = "DURWARD_KUBE_PROXY", default_value = "127.0.0.1:10249")]
    pub kube_proxy: SocketAddr,
    /// What a pod may do that the controller has not told of yet.
    #[arg(long, env = "DURWARD_UNKNOWN_PODS", value_enum, default_value = "deny")]
    pub unknown_pods: UnknownPods,
}

/// How large the log becomes.
#[derive(Clone, Debug, Args)]
pub struct LogFiles {
    /// How large the log's file becomes before it is renamed.
    #[arg(long, env = "DURWARD_LOG_FILE_BYTES", default_value_t = Rotation::default().max_bytes)]
    pub log_file_bytes: u64,
    /// How many renamed files are kept.
    #[arg(long, env = "DURWARD_LOG_FILES_KEPT", default_value_t = Rotation::default().keep)]
    pub log_files_kept: usize,
}

impl LogFiles {
    /// The same, as the log wants it.
    pub fn rotation(&self) -> Rotation {
        Rotation { max_bytes: self.log_file_bytes, keep: self.log_files_kept }
    }
}

/// What a pod may do that the controller has not told of yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownPods {
    /// Only talk with its own node.
    Deny,
    /// Everything.
    Allow,
}

/// How calls to Services are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Services {
    /// By their backend if kube-proxy says that it translates by iptables or nftables and this kernel shows what it
    /// made of them; else conservatively.
    Auto,
    /// By their backend, whatever kube-proxy says.
    Exact,
    /// Before translation: allowed where every backend of the Service is.
    Conservative,
}

/// What to dump.
#[derive(Clone, Debug, Args)]
pub struct Dump {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub places: Places,
}

impl Run {
    /// The controller's address; none if there is neither a flag nor a Service.
    pub fn controller_url(&self, env: impl Fn(&str) -> Option<String>) -> Option<String> {
        self.controller.clone().or_else(|| {
            let host = env("DURWARD_CONTROLLER_SERVICE_HOST")?;
            let port = env("DURWARD_CONTROLLER_SERVICE_PORT").unwrap_or_else(|| "9443".to_owned());
            // An IPv6 address stands in brackets in a URL.
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            Some(format!("http://{host}:{port}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controller_is_found_by_flag_or_by_its_services_environment() {
        let run = |extra: &[&str]| {
            let args = ["durward-enforcer", "run", "--node-name", "n"].iter().chain(extra);
            match Cli::try_parse_from(args).unwrap().command {
                Command::Run(run) => run,
                Command::Dump(_) => unreachable!("run was asked for"),
            }
        };
        let env = |name: &str| (name == "DURWARD_CONTROLLER_SERVICE_HOST").then(|| "fd00::1".to_owned());
        assert_eq!(run(&[]).controller_url(env).as_deref(), Some("http://[fd00::1]:9443"));
        assert_eq!(run(&["--controller", "http://c:1"]).controller_url(env).as_deref(), Some("http://c:1"));
        assert_eq!(run(&[]).controller_url(|_| None), None);
    }
}
