//! What was found, for people and as JSON.

use std::fmt::Write;

#[derive(Default)]
pub(crate) struct Report {
    lines: Vec<(String, f64)>,
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

impl Report {
    /// A ratio; those with the receive buffer as found have the names that others look for.
    pub(crate) fn ratio(&mut self, buffer: &str, name: &str, value: f64) {
        let prefix = if buffer == "as_found" { "soft".to_owned() } else { format!("soft.rcvbuf_{buffer}") };
        self.lines.push((format!("{prefix}.{name}"), value));
    }

    pub(crate) fn raw(&mut self, buffer: &str, name: &str, value: f64) {
        self.lines.push((format!("raw.{buffer}.{name}"), value));
    }

    pub(crate) fn print(&self) {
        for (name, value) in &self.lines {
            let digits = if *value < 0.1 { 9 } else { 3 };
            println!("{name:<78} {value:>16.digits$}");
        }
    }

    pub(crate) fn json(&self) -> String {
        let mut text = String::from("{\n");
        for (at, (name, value)) in self.lines.iter().enumerate() {
            let comma = if at + 1 == self.lines.len() { "" } else { "," };
            let _ = writeln!(text, "  \"{name}\": {value}{comma}");
        }
        text.push_str("}\n");
        text
    }
}
