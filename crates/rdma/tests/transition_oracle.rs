//! [`transition::check`] against an oracle that was written from another source and in another shape: the two tables
//! below are the words of the protocol brief (§12), with its numbers, and are parsed here.
//!
//! All 7 × 7 state pairs are compared for all 2^22 masks of the 22 attributes: whether it is allowed, and if not,
//! exactly which attributes are missing and which are foreign.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the oracle is part of the test: a wrong table ends it"
)]
#![expect(clippy::print_stdout, reason = "the number of compared cases is part of the evidence")]

use std::time::Instant;

use secure_rdma_rdma::{AttrMask, QpState, transition};

const ATTRIBUTES: &str = "
| 0 | 0x1 | STATE | 11 | 0x800 | RNR_RETRY |
| 1 | 0x2 | CUR_STATE | 12 | 0x1000 | RQ_PSN |
| 2 | 0x4 | EN_SQD_ASYNC_NOTIFY | 13 | 0x2000 | MAX_QP_RD_ATOMIC |
| 3 | 0x8 | ACCESS_FLAGS | 14 | 0x4000 | ALT_PATH |
| 4 | 0x10 | PKEY_INDEX | 15 | 0x8000 | MIN_RNR_TIMER |
| 5 | 0x20 | PORT | 16 | 0x10000 | SQ_PSN |
| 6 | 0x40 | QKEY | 17 | 0x20000 | MAX_DEST_RD_ATOMIC |
| 7 | 0x80 | AV | 18 | 0x40000 | PATH_MIG_STATE |
| 8 | 0x100 | PATH_MTU | 19 | 0x80000 | CAP |
| 9 | 0x200 | TIMEOUT | 20 | 0x100000 | DEST_QPN |
| 10 | 0x400 | RETRY_CNT | 25 | 0x2000000 | RATE_LIMIT |";

/// `any` in a row never speaks of SQE as the target: a reliable connection never enters it.
const TRANSITIONS: &str = "
| RESET→INIT | PKEY_INDEX, PORT, ACCESS_FLAGS → mask **0x39** | – |
| INIT→INIT | – | PKEY_INDEX, PORT, ACCESS_FLAGS |
| INIT→RTR | AV, PATH_MTU, DEST_QPN, RQ_PSN, MAX_DEST_RD_ATOMIC, MIN_RNR_TIMER → **0x129181** | ALT_PATH, ACCESS_FLAGS, PKEY_INDEX |
| RTR→RTS | TIMEOUT, RETRY_CNT, RNR_RETRY, SQ_PSN, MAX_QP_RD_ATOMIC → **0x12E01** | CUR_STATE, ALT_PATH, ACCESS_FLAGS, MIN_RNR_TIMER, PATH_MIG_STATE |
| RTS→RTS | – | CUR_STATE, ACCESS_FLAGS, ALT_PATH, PATH_MIG_STATE, MIN_RNR_TIMER |
| RTS→SQD | – | EN_SQD_ASYNC_NOTIFY |
| SQD→SQD | – | PORT, AV, TIMEOUT, RETRY_CNT, RNR_RETRY, MAX_QP_RD_ATOMIC, MAX_DEST_RD_ATOMIC, ALT_PATH, ACCESS_FLAGS, PKEY_INDEX, MIN_RNR_TIMER, PATH_MIG_STATE |
| SQD→RTS | – | CUR_STATE, ALT_PATH, ACCESS_FLAGS, MIN_RNR_TIMER, PATH_MIG_STATE |
| any except RESET→ERR | – | – |
| any→RESET | – | – |";

const STATES: [(&str, QpState); 7] = [
    ("RESET", QpState::Reset),
    ("INIT", QpState::Init),
    ("RTR", QpState::Rtr),
    ("RTS", QpState::Rts),
    ("SQD", QpState::Sqd),
    ("SQE", QpState::Sqe),
    ("ERR", QpState::Err),
];

fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

fn bit(name: &str) -> u32 {
    let rows = ATTRIBUTES.lines().map(cells);
    let mut found = rows
        .flat_map(|row| row.chunks_exact(3).map(<[&str]>::to_vec).collect::<Vec<_>>())
        .filter(|three| three[2] == name);
    let three = found.next().unwrap_or_else(|| panic!("{name} is no attribute"));
    let bit: u32 = three[0].parse().unwrap();
    assert_eq!(hex(three[1]), 1 << bit);
    1 << bit
}

fn hex(text: &str) -> u32 {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

fn attributes(cell: &str) -> u32 {
    let (names, sum) = cell.split_once('→').unwrap_or((cell, ""));
    let mask = names.split(',').map(str::trim).filter(|name| *name != "–").map(bit).sum();
    // Where the brief gives the mask as a number, with STATE, the words must amount to it.
    if let Some(number) =
        sum.trim().strip_prefix("mask").or(Some(sum)).map(|text| text.trim().trim_matches('*'))
        && !number.is_empty()
    {
        assert_eq!(hex(number), mask | 1);
    }
    mask
}

/// One row: from, to, required, optional.
type Row = (QpState, QpState, u32, u32);

fn oracle() -> Vec<Row> {
    let state = |name: &str| STATES.iter().find(|(known, _)| *known == name).unwrap().1;
    let mut rows = Vec::new();
    for row in TRANSITIONS.lines().skip(1).map(cells) {
        let (from, to) = row[0].split_once('→').unwrap();
        let (required, optional) = (attributes(row[1]), attributes(row[2]));
        for (name, each) in STATES {
            let applies = match from.split_once(" except ") {
                Some(("any", but)) => name != but,
                _ => from == "any" || from == name,
            };
            if applies {
                rows.push((each, state(to), required, optional));
            }
        }
    }
    rows
}

/// The `number`-th mask: bits 0 to 20 as they are, bit 21 stands for bit 25.
fn nth_mask(number: u32) -> u32 {
    (number & 0x001F_FFFF) | (number & 0x0020_0000) << 4
}

/// Compares one state pair for all masks; gives how many were compared and how many were allowed.
fn compare(from: QpState, to: QpState, rule: Option<(u32, u32)>) -> (u64, u64) {
    let (mut compared, mut allowed) = (0, 0);
    for number in 0..1_u32 << 22 {
        let mask = nth_mask(number);
        let answer = transition::check(from, to, AttrMask::from_bits_retain(mask));
        let carried = mask & !1;
        let right = match (rule, answer) {
            (Some((required, optional)), Ok(())) => {
                allowed += 1;
                carried & required == required && carried & !(required | optional) == 0
            }
            (Some((required, optional)), Err(why)) => {
                let (missing, foreign) = (required & !carried, carried & !(required | optional));
                missing | foreign != 0
                    && why.exists
                    && why.missing.bits() == missing
                    && why.foreign.bits() == foreign
                    && why.from == from
                    && why.to == to
            }
            (None, Ok(())) => false,
            (None, Err(why)) => !why.exists && why.missing.is_empty() && why.foreign.bits() == carried,
        };
        assert!(right, "{from}→{to} with 0x{mask:x}: check says {answer:?}, the brief {rule:x?}");
        compared += 1;
    }
    (compared, allowed)
}

#[test]
fn check_agrees_with_the_brief_on_every_state_pair_and_every_mask() {
    let began = Instant::now();
    let rows = oracle();
    let pairs: Vec<_> = STATES.iter().flat_map(|from| STATES.map(|to| (from.1, to.1))).collect();
    let (odd, even): (Vec<_>, Vec<_>) = pairs.iter().enumerate().partition(|(index, _)| index % 2 == 1);
    let work = |part: &[(usize, &(QpState, QpState))]| {
        part.iter().fold((0, 0), |(compared, allowed), (_, (from, to))| {
            let mut rules = rows.iter().filter(|row| (row.0, row.1) == (*from, *to));
            let rule = rules.next().map(|row| (row.2, row.3));
            assert!(rules.next().is_none(), "the brief has {from}→{to} twice");
            let more = compare(*from, *to, rule);
            (compared + more.0, allowed + more.1)
        })
    };
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| work(&odd));
        (work(&even), other.join().unwrap())
    });
    let (compared, allowed) = (one.0 + other.0, one.1 + other.1);
    println!("{compared} cases compared, {allowed} allowed, in {:?}", began.elapsed());

    assert_eq!(compared, 49 << 22);
    // Counted by hand from the brief: 2^optional masks per row, twice for STATE.
    let by_hand = 1 + 8 + 8 + 32 + 32 + 2 + 4096 + 32 + 6 + 7;
    assert_eq!(allowed, 2 * by_hand);
}

#[test]
fn the_names_of_the_attributes_are_those_of_the_brief() {
    for (name, flag) in AttrMask::all().iter_names() {
        assert_eq!(flag.bits(), bit(name), "{name}");
    }
    assert_eq!(AttrMask::all().iter_names().count(), 22);
    assert_eq!(AttrMask::all().bits(), nth_mask((1 << 22) - 1));
}

#[test]
fn bits_that_are_no_attribute_are_foreign_everywhere() {
    for (from, to) in STATES.iter().flat_map(|from| STATES.map(|to| (from.1, to.1))) {
        for stray in [21, 22, 23, 24, 26, 31].map(|bit| 1_u32 << bit) {
            let refusal = transition::check(from, to, AttrMask::from_bits_retain(stray)).unwrap_err();
            assert_eq!(refusal.foreign.bits(), stray);
            assert!(!refusal.exists || refusal.to_string().contains(&format!("0x{stray:x}")), "{refusal}");
        }
    }
}
