//! What a peer tells of grants as functions of bytes: what the fuzz targets call, and what every test run replays with the
//! committed corpus. They panic where an invariant breaks, which is their purpose.
#![allow(clippy::panic, clippy::expect_used)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use secure_rdma_rdma::{Access, LKey, Memory, RKey, Region, Registration, Slice};

use crate::control_messages::ControlMessage;
use crate::grant_messages::{Grant, GrantMessage};
use crate::grants::{Grants, MOST, Opened, PublicationState};
use crate::posting::Posting;
use crate::transmit::Transmit;

/// One message: what decodes is what encodes.
pub fn grant_message(bytes: &[u8]) {
    let Ok(message) = ControlMessage::decode(bytes) else { return };
    assert_eq!(message.encode(), bytes, "two messages say the same");
    if let ControlMessage::Grant(GrantMessage::Grant(grant)) = message {
        assert!(!grant.access.is_empty() && grant.length > 0 && (1..=255).contains(&grant.name.len()));
        assert!(grant.address.checked_add(grant.length).is_some());
    }
}

/// A sequence of what the peer tells and the application does, against a model that is written apart: each step is a byte,
/// and what it needs follows.
pub fn grants(bytes: &[u8]) {
    let mut both = Both::new();
    let mut rest = bytes;
    while let Some((step, tail)) = rest.split_first() {
        let (value, after) = tail.split_first().unwrap_or((&0, &[]));
        rest = after;
        let lives = match step % 8 {
            0 => both.told(&grant(u32::from(*value), &name(value.wrapping_mul(7)))),
            1 => both.told(&GrantMessage::Revoke(u32::from(*value))),
            2 => both.told(&GrantMessage::Revoked(u32::from(*value))),
            3 => both.publish(&name(*value)),
            4 => both.unpublish(&name(*value)),
            5 => both.carry(),
            6 => {
                let (message, after) = after.split_at(usize::from(*value).min(after.len()));
                rest = after;
                let Ok(message) = GrantMessage::decode(message) else { return };
                both.told(&message)
            }
            _ => {
                // Many at once, for the limit.
                let last = both.model.last_held;
                (0..*value).all(|i| {
                    let id = last.saturating_add(1).saturating_add(i.into());
                    both.told(&grant(id, &format!("{last} {i}")))
                })
            }
        };
        if !lives {
            return;
        }
        both.check();
    }
}

fn name(letter: u8) -> String {
    format!("{}", letter % 16)
}

fn grant(id: u32, name: &str) -> GrantMessage {
    let (access, rkey) = (Access::REMOTE_READ, RKey::new(7));
    GrantMessage::Grant(Grant { id, access, address: 0, length: 1, rkey, name: name.to_owned() })
}

struct NoDevice;

impl Registration for NoDevice {}

/// What there is to be, and what there is.
struct Both {
    grants: Grants,
    transmit: Transmit,
    model: Model,
    range: Slice,
}

#[derive(Default)]
struct Model {
    /// Name, and whether it is unpublished, of what is published.
    published: BTreeMap<u32, (String, bool)>,
    last_id: u32,
    /// The same of what the peer has granted, until it is told of the end.
    held: BTreeMap<u32, (String, bool)>,
    last_held: u32,
    /// What is to be told: 1, 2 or 3, and the id.
    told: VecDeque<(u8, u32)>,
}

impl Model {
    /// Whether the peer may tell this.
    fn takes(&mut self, message: &GrantMessage) -> bool {
        match message {
            GrantMessage::Grant(grant) => {
                let free = self.held.values().all(|(name, _)| *name != grant.name);
                let good = grant.id > self.last_held && free && self.held.len() < MOST;
                if good {
                    self.last_held = grant.id;
                    self.held.insert(grant.id, (grant.name.clone(), false));
                }
                good
            }
            GrantMessage::Revoke(id) => {
                let Some((_, revoked)) = self.held.get_mut(id) else { return false };
                let first = !std::mem::replace(revoked, true);
                if first {
                    self.told.push_back((3, *id));
                }
                first
            }
            GrantMessage::Revoked(id) => {
                let asked = self.published.get(id).is_some_and(|(_, asked)| *asked);
                if asked {
                    self.published.remove(id);
                }
                asked
            }
        }
    }
}

impl Both {
    fn new() -> Self {
        let memory = Arc::new(Memory::allocate(64).expect("memory"));
        let region = Region::new(Box::new(NoDevice), memory, 4096, LKey(1), RKey::new(2));
        Self {
            grants: Grants::default(),
            transmit: Transmit::new(Posting::new(128, 1, 16)),
            model: Model::default(),
            range: Slice::new(&Arc::new(region), 0, 64),
        }
    }

    fn told(&mut self, message: &GrantMessage) -> bool {
        let (grants, transmit) = (&mut self.grants, &mut self.transmit);
        let done = match message.clone() {
            GrantMessage::Grant(grant) => grants.granted(grant, &Weak::new()),
            GrantMessage::Revoke(id) => grants.revoke(id, transmit),
            GrantMessage::Revoked(id) => {
                // Its registration ends at once.
                let revoked = grants.revoked(id, transmit, &mut Vec::new());
                grants.closed(&[id]);
                revoked
            }
        };
        grants.confirm(transmit);
        assert_eq!(done.is_ok(), self.model.takes(message), "{message:?}");
        done.is_ok()
    }

    fn publish(&mut self, name: &str) -> bool {
        let taken = self.model.published.values().any(|(known, _)| known == name);
        let may = self.grants.check_new(name).is_ok();
        assert_eq!(may, !taken && self.model.published.len() < MOST);
        if may {
            let opened = Opened { window: None, range: self.range.clone(), rkey: RKey::new(9) };
            let access = Access::REMOTE_WRITE;
            let id = self.grants.publish(name.to_owned(), access, opened, &mut self.transmit);
            self.model.last_id += 1;
            assert_eq!(id, self.model.last_id);
            self.model.published.insert(id, (name.to_owned(), false));
            self.model.told.push_back((1, id));
        }
        true
    }

    fn unpublish(&mut self, name: &str) -> bool {
        let known = self.model.published.iter_mut().find(|(_, (known, _))| known == name);
        let id = self.grants.unpublish(name).ok();
        assert_eq!(id, known.as_ref().map(|(id, _)| **id));
        if let Some((id, (_, asked))) = known
            && !std::mem::replace(asked, true)
        {
            self.model.told.push_back((2, *id));
        }
        true
    }

    /// The control channel takes a message.
    fn carry(&mut self) -> bool {
        let told = self.grants.next_told().map(|message| match message {
            GrantMessage::Grant(grant) => (1, grant.id),
            GrantMessage::Revoke(id) => (2, id),
            GrantMessage::Revoked(id) => (3, id),
        });
        assert_eq!(told, self.model.told.pop_front());
        if let Some((3, id)) = told {
            self.model.held.remove(&id);
        }
        true
    }

    fn check(&self) {
        let (grants, model) = (&self.grants, &self.model);
        assert_eq!(grants.counts(), (model.published.len(), model.held.len()));
        assert!(model.held.len() <= MOST);
        for (id, (_, asked)) in &model.published {
            let state = if *asked { PublicationState::Ending } else { PublicationState::Announced };
            assert_eq!(grants.publication(*id), state);
        }
        // Each is looked for among all: of many, some will do.
        for (id, (name, revoked)) in model.held.iter().take(32) {
            let found = grants.find(name);
            assert_eq!(found.map(|found| found.id()), (!revoked).then_some(*id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 2] = [("grant_message", grant_message), ("grants", grants)];

    fn corpus(target: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
    }

    /// Every committed input, and what is near it: cut at each byte, and with each byte changed.
    #[test]
    fn the_corpus_holds() {
        for (name, target) in TARGETS {
            let mut inputs = 0;
            for entry in std::fs::read_dir(corpus(name)).unwrap() {
                let bytes = std::fs::read(entry.unwrap().path()).unwrap();
                target(&bytes);
                for at in 0..bytes.len().min(300) {
                    target(&bytes[..at]);
                    for value in [1, 0xFF] {
                        let mut changed = bytes.clone();
                        changed[at] = value;
                        target(&changed);
                    }
                }
                inputs += 1;
            }
            assert!(inputs > 4, "{inputs} inputs for {name}");
        }
    }

    /// Long walks through what is allowed, each ended by something at random; the same in every run.
    #[test]
    fn random_walks_hold() {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = |below: usize| {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let value = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
            usize::try_from(value).unwrap() % below
        };
        let pick = |of: &BTreeMap<u32, (String, bool)>, flag: bool, at: usize| {
            let fit: Vec<u32> = of.iter().filter(|(_, (_, is))| *is == flag).map(|(id, _)| *id).collect();
            (!fit.is_empty()).then(|| fit[at % fit.len()])
        };
        let (mut steps, mut ends) = (0, 0);
        for _ in 0..200 {
            let mut both = Both::new();
            loop {
                let at = random(1 << 16);
                let letter = name(at.to_le_bytes()[0]);
                let message = match random(16) {
                    0..3 => {
                        both.publish(&letter);
                        None
                    }
                    3..5 => {
                        both.unpublish(&letter);
                        None
                    }
                    5..9 => {
                        both.carry();
                        None
                    }
                    9..11 => pick(&both.model.held, false, at).map(GrantMessage::Revoke),
                    11..13 => pick(&both.model.published, true, at).map(GrantMessage::Revoked),
                    13..15 => {
                        let free = both.model.held.values().all(|(known, _)| *known != letter);
                        free.then(|| grant(both.model.last_held + 1, &letter))
                    }
                    _ if at % 16 == 0 => Some(match at / 16 % 3 {
                        0 => grant(random(64).try_into().unwrap(), &letter),
                        1 => GrantMessage::Revoke(random(64).try_into().unwrap()),
                        _ => GrantMessage::Revoked(random(64).try_into().unwrap()),
                    }),
                    _ => None,
                };
                steps += 1;
                if message.is_some_and(|message| !both.told(&message)) {
                    ends += 1;
                    break;
                }
                both.check();
            }
        }
        assert!(ends == 200 && steps > 20_000, "{steps} steps, {ends} ends");
    }

    #[test]
    #[ignore = "writes fuzz/corpus anew"]
    fn write_corpus() {
        let long = "n".repeat(255);
        let messages: Vec<Vec<u8>> = [
            grant(1, "inbox"),
            grant(u32::MAX, &long),
            GrantMessage::Revoke(1),
            GrantMessage::Revoked(1),
            grant(2, "ü"),
        ]
        .iter()
        .map(GrantMessage::encode)
        .chain([ControlMessage::Received(1 << 40).encode()])
        .collect();
        let raw: Vec<u8> =
            messages[..1].iter().flat_map(|m| [&[6, m.len().to_le_bytes()[0]], &m[..]].concat()).collect();
        let sequences = vec![
            vec![0, 1, 0, 2, 1, 1, 5, 0, 0, 3],
            vec![3, 1, 5, 0, 4, 1, 5, 0, 2, 1, 3, 1],
            vec![3, 1, 2, 1],
            vec![0, 1, 1, 1, 1, 1],
            vec![7, 255, 7, 255, 7, 255, 7, 255, 7, 4, 1, 9, 5, 0, 7, 1, 7, 1],
            raw,
        ];
        let all: [(&str, Vec<Vec<u8>>); 2] = [("grant_message", messages), ("grants", sequences)];
        for (target, inputs) in all {
            std::fs::create_dir_all(corpus(target)).unwrap();
            for (index, input) in inputs.iter().enumerate() {
                std::fs::write(corpus(target).join(format!("seed-{index:02}")), input).unwrap();
            }
        }
    }
}
