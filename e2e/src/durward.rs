//! Durward on a bed (IO).

use crate::{Bed, Result, images};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/durward");

/// Builds Durward's images, installs its chart with these values (`key=value`), and waits until all of it is ready.
/// On a bed that has it already, it is upgraded.
pub fn install(bed: &Bed, values: &[&str]) -> Result<()> {
    for archive in images::durward()? {
        bed.load_archive(&archive)?;
    }
    let set: Vec<_> = values.iter().flat_map(|value| ["--set", value]).collect();
    let place = ["--namespace", "durward-system", "--create-namespace"];
    bed.helm(&[&["upgrade", "--install", "durward", CHART], place.as_slice(), &set].concat())?;
    for daemon in ["deployment/durward-controller", "daemonset/durward-enforcer"] {
        bed.wait(&format!("{daemon} is ready"), || {
            // The time-out only bounds one look; the wait around it is patient, and tells what it saw.
            let status = ["-n", "durward-system", "rollout", "status", daemon, "--timeout=5s"];
            bed.kubectl(&status).map(Some)
        })?;
    }
    Ok(())
}
