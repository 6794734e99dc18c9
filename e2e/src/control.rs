//! The control plane: etcd, API server, controller manager and scheduler (IO).

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    Config, Error, Namespaces, Result,
    config::{API_SERVER, CONTROL_PLANE, SERVICE_RANGES, host_id, scratch},
    error::Named,
    fabric, process,
    process::Daemon,
    programs, sweep, wait,
};

pub(crate) struct ControlPlane {
    config: Config,
    scratch: PathBuf,
    cgroup: PathBuf,
    host: Namespaces,
}

/// The kubeconfig of a user: `admin`, a node's name, or a component's.
pub(crate) fn kubeconfig(bed: &str, user: &str) -> PathBuf {
    scratch(bed).join(format!("{user}.kubeconfig"))
}

impl ControlPlane {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        Ok(Self {
            config: config.clone(),
            scratch: scratch(&config.name),
            cgroup: sweep::make_cgroup(&host_id(&config.name, CONTROL_PLANE))?,
            host: fabric::namespace(&config.name, CONTROL_PLANE)?,
        })
    }

    /// Starts etcd and the API server, and returns when it is ready.
    pub(crate) fn start(&self) -> Result<()> {
        self.write_users()?;
        let data = self.scratch.join("etcd");
        let mut etcd = programs::command("etcd")?;
        // A bed does not outlive its machine: nothing needs to reach the disk in time.
        etcd.arg("--data-dir").arg(data).args(["--unsafe-no-fsync", "--log-level", "warn"]);
        self.daemon("etcd", &etcd)?;
        self.daemon("kube-apiserver", &self.api_server()?)?;
        let state =
            || ["etcd", "kube-apiserver"].map(|daemon| process::state(&self.scratch, daemon)).join("\n");
        wait("the API server is ready", || {
            let ready = self.host.run(|| self.is_ready()).and_then(|ready| ready);
            match ready {
                Ok(()) => Ok(Ok(())),
                Err(_) if process::ended(&self.scratch, "kube-apiserver") => Ok(Err(Error::unfit(state()))),
                Err(error) => Err(format!("{error}\n{}", state())),
            }
        })?
    }

    /// Starts what turns objects into other objects.
    pub(crate) fn start_controllers(&self) -> Result<()> {
        let config = |user| kubeconfig(&self.config.name, user);
        let common = ["--leader-elect=false", "--authentication-skip-lookup"];
        let mut manager = programs::command("kube-controller-manager")?;
        manager.arg("--kubeconfig").arg(config("kube-controller-manager")).args(common);
        manager.arg("--service-account-private-key-file").arg(self.signing_key());
        manager.arg("--root-ca-file").arg(self.authority());
        manager.args(["--use-service-account-credentials", "--allocate-node-cidrs=false"]);
        self.daemon("kube-controller-manager", &manager)?;
        let mut scheduler = programs::command("kube-scheduler")?;
        scheduler.arg("--kubeconfig").arg(config("kube-scheduler")).args(common);
        self.daemon("kube-scheduler", &scheduler)
    }

    fn daemon(&self, name: &str, command: &Command) -> Result<()> {
        Daemon { scratch: &self.scratch, cgroup: &self.cgroup, name }.start_in(&self.host, command)
    }

    fn api_server(&self) -> Result<Command> {
        let mut server = programs::command("kube-apiserver")?;
        server.args(["--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--allow-privileged"]);
        server.arg(format!("--advertise-address={API_SERVER}"));
        server.arg(format!("--service-cluster-ip-range={SERVICE_RANGES}"));
        server.args(["--authorization-mode=Node,RBAC", "--kubelet-preferred-address-types=InternalIP"]);
        server.args(["--enable-admission-plugins=NodeRestriction"]);
        // As before Kubernetes 1.36, of whose objects clusters are full: CIDRs that read one way or another are let in.
        server.arg("--feature-gates=StrictIPCIDRValidation=false");
        if self.config.nodes == 0 {
            // Nobody makes ServiceAccounts where there is no controller manager; pods are wanted all the same.
            server.arg("--disable-admission-plugins=ServiceAccount");
        }
        server.arg("--service-account-issuer=https://kubernetes.default.svc");
        server.arg("--service-account-key-file").arg(self.signing_key());
        server.arg("--service-account-signing-key-file").arg(self.signing_key());
        server.arg("--token-auth-file").arg(self.scratch.join("tokens.csv"));
        server.arg("--cert-dir").arg(self.authority().with_file_name(""));
        Ok(server)
    }

    fn is_ready(&self) -> Result<()> {
        // A cheap question first: to start kubectl costs more than to wait.
        let address = SocketAddr::from((API_SERVER, 6443));
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).named("connecting to the API server")?;
        let mut kubectl = programs::command("kubectl")?;
        let admin = kubeconfig(&self.config.name, "admin");
        process::output(kubectl.arg("--kubeconfig").arg(admin).args(["get", "--raw", "/readyz"])).map(drop)
    }

    /// Static tokens, as good as their names: nobody else reaches this API server.
    fn write_users(&self) -> Result<()> {
        let key = self.signing_key();
        let curve = ["ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out"];
        process::output(Command::new("openssl").args(curve).arg(&key))?;
        let components = ["kube-controller-manager", "kube-scheduler", "kube-proxy"];
        let mut users = String::from("admin-token,admin,admin,system:masters\n");
        users.extend(components.map(|name| format!("{name}-token,system:{name},{name}\n")));
        users.extend(
            self.config.node_names().iter().map(|n| format!("{n}-token,system:node:{n},{n},system:nodes\n")),
        );
        write(&self.scratch.join("tokens.csv"), &users)?;
        let nodes = self.config.node_names();
        for user in ["admin"].into_iter().chain(components).chain(nodes.iter().map(String::as_str)) {
            let authority = self.authority();
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: bed\n\
                 contexts: [{{name: bed, context: {{cluster: bed, user: {user}}}}}]\n\
                 users: [{{name: {user}, user: {{token: {user}-token}}}}]\n\
                 clusters: [{{name: bed, cluster: {{server: \"https://{API_SERVER}:6443\", \
                 certificate-authority: {}}}}}]\n",
                authority.display()
            );
            write(&kubeconfig(&self.config.name, user), &text)?;
        }
        Ok(())
    }

    fn signing_key(&self) -> PathBuf {
        self.scratch.join("service-accounts.key")
    }

    /// The API server makes its certificate itself.
    fn authority(&self) -> PathBuf {
        self.scratch.join("pki/apiserver.crt")
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).at("writing", file)
}
