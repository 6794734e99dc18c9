//! Kubernetes' own NetworkPolicy suite against Durward, on one bed after the other (IO).

mod report;

use std::{fs, path::Path, process::Command};

use crate::{
    Bed, Cni, Config, Error, Proxy, Result, config::CONTROL_PLANE, end_with_parent, error::Named, images,
    install, process, programs,
};
use report::Report;

/// What the specs have in their names that connect by SCTP sockets, which the kernels of test machines lack. Those that only
/// put SCTP into a policy do not have it.
const SKIPPED: &str = "[Feature:SCTPConnectivity]";

/// Runs all of it on a bed for each of these CNI plugins, and prints what became of it. Fails if a spec failed, or was not run
/// for another reason than that it needs SCTP sockets.
pub fn run(plugins: &[Cni], proxy: Proxy) -> Result<()> {
    end_with_parent()?;
    let commit = ["describe", "--always", "--dirty", "--exclude=*"];
    let commit = process::output(Command::new("git").args(commit).current_dir(env!("CARGO_MANIFEST_DIR")))?;
    let suite = programs::netpol()?;
    let mut summary = format!("Durward {}\n{}", commit.trim(), report::HEAD);
    let mut details = String::new();
    let mut conforms = true;
    for &cni in plugins {
        let report = on_bed(&suite, Config::new("conformance").nodes(2).cni(cni).proxy(proxy))?;
        let name = format!("{} with {}", cni.plugin(), proxy.name());
        summary += &report.row(&name);
        details += &report.details(&name);
        conforms &= report.conforms(SKIPPED);
    }
    println!("\n{summary}\n{details}");
    if conforms { Ok(()) } else { Err(Error::unfit("the suite did not pass; see above")) }
}

fn on_bed(suite: &Path, config: Config) -> Result<Report> {
    let bed = Bed::up(config)?;
    bed.load(&images::agnhost()?)?;
    install(&bed, &[])?;
    let file = bed.folder().join("netpol.json");
    // Not to outlive us if we are killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(suite);
    command.arg("--kubeconfig").arg(bed.kubeconfig()).arg("--ginkgo.json-report").arg(&file);
    // Ginkgo's own limit is an hour.
    command.args(["--ginkgo.timeout", "24h", "--ginkgo.skip", &regex(SKIPPED)]);
    // Its status says nothing that the report does not.
    bed.on(CONTROL_PLANE, || command.status())?.named("running the suite")?;
    // It was interrupted with us.
    process::stop_if_closed();
    Report::parse(&fs::read(&file).at("reading the suite's report", &file)?)
}

/// The text as a regular expression.
fn regex(text: &str) -> String {
    text.replace('[', r"\[").replace(']', r"\]")
}
