//! What a run has met.

use std::collections::BTreeMap;

use secure_rdma_soft::engine::Counters;

/// Counts of everything worth meeting, summed over runs.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    pub counts: BTreeMap<&'static str, u64>,
    pub seeds: u64,
    pub packets: u64,
    /// Nanoseconds of virtual time.
    pub time: u128,
    pub completions: u64,
}

impl Coverage {
    pub fn hit(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn engine(&mut self, counters: &Counters) {
        for (name, value) in counters.iter() {
            *self.counts.entry(name).or_default() += value;
        }
    }

    pub fn add(&mut self, other: &Self) {
        for (name, value) in &other.counts {
            *self.counts.entry(name).or_default() += value;
        }
        self.seeds += other.seeds;
        self.packets += other.packets;
        self.time += other.time;
        self.completions += other.completions;
    }

    pub fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    pub fn hours(&self) -> f64 {
        self.time as f64 / 3.6e12
    }
}
