//! The embedded device against plain sockets: two processes over loopback, everything in one run.
//!
//! Each measurement is made by a server process and a client process; `main` starts both, round after round, the plain
//! ones and ours in turn, and takes the median of the ratios of neighbours. `--json FILE` writes them.
//!
//! Usage: cargo bench -p secure-rdma-soft --bench wire -- [--json FILE] [--rounds N] [--seconds S] [--only NAME,…]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

mod child;
mod host;
mod link;
mod report;
mod scale;
mod soft;
mod tcp;
mod udp;

use std::collections::BTreeMap;
use std::time::Duration;

use child::{Ping, Role, Task};
use report::{Report, median};

/// Receive buffers: what Debian allows at the most without being told otherwise, and what the kernel gives here.
const BUFFERS: [(&str, usize); 2] = [("212992", 212_992), ("as_found", 4 << 20)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(role) = Role::parse(&arguments) {
        return role.run();
    }
    let value = |name: &str| {
        arguments.iter().position(|argument| argument == name).map(|at| arguments[at + 1].clone())
    };
    let rounds: usize = value("--rounds").map_or(5, |text| text.parse().unwrap());
    let seconds: f64 = value("--seconds").map_or(1.0, |text| text.parse().unwrap());
    let only = value("--only");
    let only = only.as_deref();
    let wanted = |name: &str| only.is_none_or(|only| only.split(',').any(|one| name.starts_with(one)));
    let length = Duration::from_secs_f64(seconds);

    let mut report = Report::default();
    for (buffer, bytes) in BUFFERS {
        compare(&mut report, buffer, bytes, rounds, length, &wanted);
    }
    if wanted("scale") {
        scale::measure(&mut report, rounds, length);
    }
    report.print();
    if let Some(file) = value("--json") {
        std::fs::write(&file, report.json()).unwrap();
        println!("\nwritten to {file}");
    }
}

/// What each ratio compares: its name, ours, the plain ones (the best of which counts), and whether more is better.
const RATIOS: [(&str, Task, &[Task], bool); 5] = [
    (
        "write_1m.vs_tcp",
        Task::SoftWrite,
        &[Task::Tcp(64 << 10), Task::Tcp(256 << 10), Task::Tcp(1 << 20)],
        true,
    ),
    ("pingpong_64_spin.vs_udp", Task::SoftPing(Ping::Spin), &[Task::UdpPing(Ping::Spin)], false),
    ("pingpong_64_block.vs_udp", Task::SoftPing(Ping::Block), &[Task::UdpPing(Ping::Block)], false),
    ("pingpong_64_unpinned.vs_udp", Task::SoftPing(Ping::Unpinned), &[Task::UdpPing(Ping::Unpinned)], false),
    ("write_64.vs_sendto", Task::SoftSmall, &[Task::UdpFlood], true),
];

fn compare(
    report: &mut Report,
    buffer: &str,
    bytes: usize,
    rounds: usize,
    length: Duration,
    wanted: &dyn Fn(&str) -> bool,
) {
    for (name, ours, plain, more_is_better) in RATIOS {
        if !wanted(name) {
            continue;
        }
        let mut raw: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut ratios = Vec::new();
        let mut drops = 0.0;
        for _ in 0..rounds {
            let mut best: Option<f64> = None;
            for task in plain {
                let value = child::measure(*task, bytes, length).value;
                raw.entry(task.name()).or_default().push(value);
                let better = |best: f64| if more_is_better { best.max(value) } else { best.min(value) };
                best = Some(best.map_or(value, better));
            }
            let found = child::measure(ours, bytes, length);
            raw.entry(ours.name()).or_default().push(found.value);
            drops += found.drops;
            for (what, value) in found.more {
                raw.entry(format!("{}.{what}", ours.name())).or_default().push(value);
            }
            ratios.push(found.value / best.unwrap());
        }
        report.ratio(buffer, name, median(&ratios));
        report.raw(buffer, &format!("{name}.receive_drops"), drops);
        for (what, values) in raw {
            report.raw(buffer, &format!("{name}.{what}"), median(&values));
        }
    }
}
