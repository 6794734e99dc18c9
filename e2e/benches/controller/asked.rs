//! What the API server was asked for, as its own metrics count it (IO).

use std::collections::BTreeMap;

use durward_e2e::{Bed, Result};

/// Lists that were answered and watches that are open, by resource.
pub(crate) type Asked = BTreeMap<String, (i64, i64)>;

pub(crate) fn count(bed: &Bed) -> Result<Asked> {
    let mut asked = Asked::new();
    for line in bed.kubectl(&["get", "--raw", "/metrics"])?.lines() {
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0)
        };
        let number = || line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as i64;
        let Some(resource) = label("resource").filter(|resource| !resource.is_empty()) else { continue };
        let (lists, watches) = asked.entry(resource.to_owned()).or_default();
        // A watch is in the total only when it has ended.
        match (line.split('{').next(), label("verb")) {
            (Some("apiserver_request_total"), Some("LIST")) => *lists += number(),
            (Some("apiserver_longrunning_requests"), Some("WATCH")) => *watches += number(),
            _ => {}
        }
    }
    Ok(asked)
}

/// What was asked for in between, of those resources of which something was.
pub(crate) fn since(before: &Asked, after: &Asked) -> Asked {
    let since = after.iter().map(|(resource, now)| {
        let then = before.get(resource).copied().unwrap_or_default();
        (resource.clone(), (now.0 - then.0, now.1 - then.1))
    });
    since.filter(|(_, asked)| *asked != (0, 0)).collect()
}
