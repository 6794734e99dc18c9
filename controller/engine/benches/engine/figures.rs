//! Results by name, printed as they come and as one JSON object at the end.

use std::collections::BTreeMap;

/// Results by name, and which are wanted.
pub(crate) struct Figures {
    wanted: Option<String>,
    found: BTreeMap<String, f64>,
}

impl Figures {
    /// None yet. `DURWARD_BENCH` is a comma-separated list of scenarios, if not all are wanted.
    pub(crate) fn new() -> Self {
        Self { wanted: std::env::var("DURWARD_BENCH").ok(), found: BTreeMap::new() }
    }

    pub(crate) fn is_wanted(&self, scenario: &str) -> bool {
        self.wanted.as_deref().is_none_or(|wanted| wanted.split(',').any(|one| one == scenario))
    }

    pub(crate) fn note(&mut self, name: &str, figure: f64, digits: i32) {
        let scale = 10_f64.powi(digits);
        let figure = (figure * scale).round() / scale;
        println!("{name:<32} {figure}");
        self.found.insert(name.to_owned(), figure);
    }

    /// The largest against the smallest: 1 if something grows just as what it is divided by.
    pub(crate) fn spread(each: [f64; 4]) -> f64 {
        each.iter().copied().fold(0.0, f64::max) / each.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn print(&self) {
        let fields: Vec<_> = self.found.iter().map(|(name, figure)| format!("\"{name}\":{figure}")).collect();
        println!("{{{}}}", fields.join(","));
    }
}
