//! How much memory the daemons have resident (IO).

use std::fs;

use durward_e2e::{Bed, Pod, Result};
use serde_json::Value;

use crate::Figures;

pub(crate) fn measure(bed: &Bed, _: &Pod, _: &Pod) -> Result<Figures> {
    let mut figures = Figures::new();
    for daemon in ["controller", "enforcer"] {
        let most =
            processes(bed, &format!("/durward-{daemon}")).into_iter().map(resident_mb).reduce(f64::max);
        let most = most.unwrap_or_else(|| panic!("no durward-{daemon} runs on the bed"));
        println!("durward-{daemon} has {most:.1} MB resident (the largest of all nodes)");
        figures.insert(format!("{daemon}_rss_mb"), Value::from(most));
    }
    Ok(figures)
}

/// The processes of this program on the bed's nodes, which are told by their cgroups.
fn processes(bed: &Bed, program: &str) -> Vec<u32> {
    let runs = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        line.split(|&byte| byte == 0).next() == Some(program.as_bytes())
            && cgroup.contains(&format!("/bed-{}-n", bed.name()))
    };
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(runs).collect()
}

fn resident_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    kib * 1024.0 / 1e6
}
