//! The fuzz targets of `fuzz/`, replayed with their committed corpora and with mutations of them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod sim;

use std::path::{Path, PathBuf};

use sim::fuzzing::{network, requester, responder};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 3] =
    [("responder", responder), ("requester", requester), ("network", network)];

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn files(target: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> =
        std::fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn the_corpus_is_replayed() {
    for (name, target) in TARGETS {
        let inputs = files(name);
        assert!(inputs.len() >= 8, "{name} has a corpus");
        inputs.iter().for_each(|input| target(input));
    }
}

/// A short fuzzing run of our own, the same each time: the corpus, mutated.
#[test]
fn mutations_of_the_corpus_break_nothing() {
    let mut random = sim::random::Random::new(8, 8);
    for (name, target) in TARGETS {
        let inputs = files(name);
        for _ in 0..1_500 {
            let mut input = inputs[random.index(inputs.len())].clone();
            for _ in 0..=random.index(4) {
                let at = random.index(input.len() + 1).min(input.len());
                match random.index(4) {
                    0 if at < input.len() => input[at] ^= 1 << random.index(8),
                    1 => input.insert(at, random.u64().to_le_bytes()[0]),
                    2 => input.truncate(at),
                    _ => {
                        let other = &inputs[random.index(inputs.len())];
                        let from = random.index(other.len() + 1);
                        input.splice(at.., other[from..].iter().copied());
                    }
                }
            }
            target(&input);
        }
    }
}

/// Random bytes of several lengths: enough to begin with, the fuzzer finds more.
#[test]
#[ignore = "writes fuzz/corpus anew"]
fn write_corpus() {
    for (name, _) in TARGETS {
        std::fs::create_dir_all(corpus(name)).unwrap();
        for index in 0..16_u64 {
            let mut random = sim::random::Random::new(index, 77);
            let length = 8 << (index % 6);
            let input: Vec<u8> = (0..length).map(|_| random.u64().to_le_bytes()[0]).collect();
            std::fs::write(corpus(name).join(format!("seed-{index:02}")), input).unwrap();
        }
    }
}
