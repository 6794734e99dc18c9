//! A node: its own network and mount namespace and cgroups, containerd, kubelet and kube-proxy (IO).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::json;

use crate::{
    Cni, Config, Namespaces, Result,
    config::{CLUSTER_DNS, POD_RANGES, addresses, host_id, pod_ranges, scratch},
    control,
    error::Named,
    fabric, process,
    process::Daemon,
    programs, sweep, wait,
};

const CONTAINERD: &str = r#"version = 2
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "bed.local/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
"#;

pub(crate) struct Node {
    config: Config,
    name: String,
    scratch: PathBuf,
    cgroup: PathBuf,
}

/// The namespaces of a node that is up.
pub(crate) fn namespaces(bed: &str, node: &str) -> Result<Namespaces> {
    let folder = scratch(bed).join(node);
    let pid = wait(&format!("{node} of bed {bed} exists"), || {
        process::pid(&folder, "holder").ok_or_else(|| format!("{}/holder.pid is missing", folder.display()))
    })?;
    Namespaces::of_process(pid)
}

impl Node {
    pub(crate) fn new(config: &Config, name: &str) -> Result<Self> {
        let folder = scratch(&config.name).join(name);
        let cgroup = sweep::make_cgroup(&host_id(&config.name, name))?;
        Ok(Self { config: config.clone(), name: name.to_owned(), scratch: folder, cgroup })
    }

    /// Makes the node and starts containerd.
    pub(crate) fn start(&self) -> Result<Namespaces> {
        self.write_files()?;
        // On a thread of its own, which becomes part of the node.
        thread::scope(|scope| {
            let inside = scope.spawn(|| self.isolate());
            inside.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        })?;
        let host = namespaces(&self.config.name, &self.name)?;
        let mut containerd = programs::command("containerd")?;
        containerd.arg("--config").arg(self.file("containerd.toml")).env("PATH", programs::search_path()?);
        self.daemon("containerd", &host, &containerd)?;
        let socket = Path::new("/run/containerd/containerd.sock");
        wait(&format!("containerd of {} answers", self.name), || {
            let exists = host.run(|| socket.exists()).map_err(|error| error.to_string())?;
            if exists { Ok(()) } else { Err(process::state(&self.scratch, "containerd")) }
        })?;
        Ok(host)
    }

    /// Makes the node part of the cluster, whose API server must be ready.
    pub(crate) fn join(&self, host: &Namespaces) -> Result<()> {
        let (v4, v6) = addresses(&self.name);
        let path = programs::search_path()?;
        let mut kubelet = programs::command("kubelet")?;
        kubelet.env("PATH", &path).arg("--config").arg(self.file("kubelet.json"));
        kubelet.arg("--kubeconfig").arg(control::kubeconfig(&self.config.name, &self.name));
        kubelet.arg(format!("--hostname-override={}", self.name)).arg(format!("--node-ip={v4},{v6}"));
        self.daemon("kubelet", host, &kubelet)?;
        let mut proxy = programs::command("kube-proxy")?;
        proxy.env("PATH", &path).arg(format!("--proxy-mode={}", self.config.proxy.mode(&self.name)));
        proxy.arg("--kubeconfig").arg(control::kubeconfig(&self.config.name, "kube-proxy"));
        proxy.arg(format!("--hostname-override={}", self.name)).arg(format!("--cluster-cidr={POD_RANGES}"));
        // Only the machine's first network namespace may set these.
        proxy.args(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"]);
        proxy.arg("--conntrack-tcp-timeout-close-wait=0");
        self.daemon("kube-proxy", host, &proxy)
    }

    fn daemon(&self, name: &str, host: &Namespaces, command: &Command) -> Result<()> {
        Daemon { scratch: &self.scratch, cgroup: &self.cgroup, name }.start_in(host, command)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn write_files(&self) -> Result<()> {
        let cni = self.file("etc/cni/net.d");
        for folder in [&cni, &self.file("etc.work"), &self.file("lib"), &self.file("log")] {
            fs::create_dir_all(folder).at("creating", folder)?;
        }
        let cgroup_root = host_id(&self.config.name, &self.name);
        let files = [
            (cni.join("10-bed.conflist"), self.cni().to_string()),
            (self.file("containerd.toml"), CONTAINERD.to_owned()),
            (self.file("kubelet.json"), kubelet(&cgroup_root).to_string()),
        ];
        for (file, text) in files {
            fs::write(&file, text).at("writing", &file)?;
        }
        Ok(())
    }

    fn cni(&self) -> serde_json::Value {
        let (v4, v6) = pod_ranges(&self.name);
        let ipam = json!({
            "type": "host-local",
            "ranges": [[{"subnet": v4}], [{"subnet": v6}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "dataDir": "/run/ipam",
        });
        let connect = match self.config.cni {
            Cni::Ptp => json!({"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": ipam}),
            Cni::Bridge => json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                "ipMasq": false, "mtu": 1500, "ipam": ipam,
            }),
        };
        let host_ports = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        json!({"cniVersion": "0.4.0", "name": "bed", "plugins": [connect, host_ports]})
    }

    /// Makes the calling thread's mount namespace the node's, and leaves a process there that keeps it.
    fn isolate(&self) -> Result<()> {
        // Opened first: the folder of named namespaces is covered below.
        let network = fabric::namespace(&self.config.name, &self.name)?;
        unshare(CloneFlags::CLONE_NEWNS).named("making a mount namespace (are you root?)")?;
        let none = None::<&str>;
        let propagate =
            |how| mount(none, "/", none, MsFlags::MS_REC | how, none).named("changing mount propagation");
        propagate(MsFlags::MS_PRIVATE)?;
        let bind = |from: &str, to: &str| {
            mount(Some(&self.file(from)), to, none, MsFlags::MS_BIND, none).named(format!("binding {to}"))
        };
        let fresh = |kind: &str, to: &str, options: Option<&str>| {
            mount(Some(kind), to, Some(kind), MsFlags::empty(), options)
                .named(format!("mounting {kind} on {to}"))
        };
        fresh("bpf", "/sys/fs/bpf", None)?;
        let folder = self.scratch.display();
        fresh(
            "overlay",
            "/etc",
            Some(&format!("lowerdir=/etc,upperdir={folder}/etc,workdir={folder}/etc.work")),
        )?;
        bind("lib", "/var/lib")?;
        bind("log", "/var/log")?;
        fresh("tmpfs", "/run", None)?;
        for folder in ["/run/netns", "/run/lock"] {
            fs::create_dir(folder).named(format!("creating {folder}"))?;
        }
        // As on any machine: what pods mount where they may propagates, within the node.
        propagate(MsFlags::MS_SHARED)?;
        network.enter()?;
        let daemon = Daemon { scratch: &self.scratch, cgroup: &self.cgroup, name: "holder" };
        daemon.start(Command::new("sleep").arg("infinity"))
    }
}

fn kubelet(cgroup_root: &str) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "clusterDNS": [CLUSTER_DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup_root}"),
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "syncFrequency": "2s",
        "maxPods": 200,
        // A full disk on the machine is no reason to lose pods of a test.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%",
        },
    })
}
