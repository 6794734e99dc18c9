//! A throwaway Kubernetes on this machine, from the command line (IO).

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use clap::{Args, Parser, Subcommand};
use durward_e2e::{Bed, Cni, Config, Error, Proxy, Result, images, install, programs};

/// Brings up and takes down a throwaway Kubernetes of real parts, in namespaces of this machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Which bed; several can be up.
    #[arg(long, global = true, default_value = "cluster")]
    name: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Bring it up, and leave it up.
    Up(Up),
    /// Take it down.
    Down,
    /// Run kubectl as its administrator.
    #[command(disable_help_flag = true)]
    Kubectl(Words),
    /// Run helm as its administrator.
    #[command(disable_help_flag = true)]
    Helm(Words),
    /// Run a command on a host: cp (the control plane's), n1, n2, ….
    Exec {
        /// The host.
        host: String,
        #[command(flatten)]
        words: Words,
    },
    /// Build the programs that it consists of.
    Build,
    /// Build the images of Durward, and print where they are.
    Images,
}

#[derive(Args)]
struct Up {
    /// How many nodes; without any there are etcd and the API server only.
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// The CNI plugin.
    #[arg(long, value_enum, default_value_t)]
    cni: Cni,
    /// The mode of kube-proxy.
    #[arg(long, value_enum, default_value_t)]
    proxy: Proxy,
    /// Install Durward on it.
    #[arg(long)]
    with_durward: bool,
}

#[derive(Args)]
struct Words {
    /// The command line.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

fn main() -> ExitCode {
    match act(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("durward-bed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(Arguments { name, action }: Arguments) -> Result<ExitCode> {
    match action {
        Action::Up(up) => bring_up(&name, &up)?,
        Action::Down => Bed::down(&name)?,
        Action::Build => programs::build()?,
        Action::Images => {
            for archive in images::durward()? {
                println!("{}", archive.display());
            }
        }
        Action::Kubectl(Words { words }) => return as_administrator(&name, "kubectl", &words),
        Action::Helm(Words { words }) => return as_administrator(&name, "helm", &words),
        Action::Exec { host, words: Words { words } } => {
            let (program, args) = words.split_first().ok_or_else(|| Error::Unfit("which command?".into()))?;
            let bed = Bed::attach(&name)?;
            let mut command = Command::new(program);
            command.args(args).env("KUBECONFIG", bed.kubeconfig());
            return bed.on(&host, || passed_on(&mut command))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn bring_up(name: &str, up: &Up) -> Result<()> {
    let bed = Bed::up(Config::new(name).nodes(up.nodes).cni(up.cni).proxy(up.proxy))?;
    if up.nodes > 0 {
        for image in [images::agnhost()?, images::redis()?] {
            bed.load(&image)?;
        }
    }
    if up.with_durward {
        install(&bed, &[])?;
    }
    let logs = bed.folder();
    bed.keep()?;
    let this = std::env::args().next().unwrap_or_else(|| "durward-bed".into());
    println!(
        "The cluster is up. Its logs are in {}. Try:\n  {this} --name {name} kubectl get pods -A -o wide\n  \
         {this} --name {name} exec n1 ip route\n  {this} --name {name} down",
        logs.display()
    );
    Ok(())
}

fn as_administrator(name: &str, program: &str, words: &[String]) -> Result<ExitCode> {
    let bed = Bed::attach(name)?;
    let mut command = programs::command(program)?;
    command.args(words).env("KUBECONFIG", bed.kubeconfig());
    bed.on("cp", || passed_on(&mut command))?
}

/// Becomes the command, so that its input, output, signals and exit code are ours.
fn passed_on(command: &mut Command) -> Result<ExitCode> {
    let source = command.exec();
    Err(Error::System { what: format!("running {}", command.get_program().display()), source })
}
