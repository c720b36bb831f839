//! The transition table against rxe's own `ibv_modify_qp`: every pair of states, every required attribute left out,
//! every other attribute added, one at a time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use secure_rdma_rdma::transition::{check, rule};
use secure_rdma_rdma::{
    Access, AddressVector, Addressing, AttrMask, ErrorCode, Psn, QpAttr, QpState, QueuePair,
};
use secure_rdma_verbs::testing::{modify_unchecked, query};

use QpState::{Err, Init, Reset, Rtr, Rts, Sqd};

/// Where a reliable connection can be brought to. SQE is no state of it.
const REACHABLE: [QpState; 6] = [Reset, Init, Rtr, Rts, Sqd, Err];

const SMALL: Sizes = Sizes { max_send: 4, max_receive: 4, shared: None };

/// An end whose peer exists, and attributes with a good value for everything.
struct Bench {
    us: End,
    them: Arc<End>,
    address: AddressVector,
}

impl Bench {
    fn new(them: &Arc<End>, address: &AddressVector) -> Self {
        let us = End::new(V4[0], SMALL);
        Self { us, them: Arc::clone(them), address: address.clone() }
    }

    fn pair(&self) -> &dyn QueuePair {
        self.us.pair.as_ref()
    }

    /// Every field set, to move to `to`.
    fn everything(&self, to: QpState) -> QpAttr {
        QpAttr {
            state: Some(to),
            access: Some(Access::REMOTE_WRITE),
            pkey_index: Some(0),
            port: Some(1),
            sq_psn: Psn::new(PSNS[0]),
            timeout: Some(14),
            retry_count: Some(3),
            rnr_retry: Some(6),
            max_rd_atomic: Some(4),
            address: Some(self.address.clone()),
            ..self.us.rtr(&self.them, PSNS[1])
        }
    }

    /// Moves along the table's own required masks.
    fn bring_to(&self, state: QpState) {
        let path: &[QpState] = match state {
            Reset => &[],
            Init => &[Init],
            Rtr => &[Init, Rtr],
            Rts => &[Init, Rtr, Rts],
            Sqd => &[Init, Rtr, Rts, Sqd],
            _ => &[Init, Err],
        };
        for to in path {
            let required = rule(self.pair().state(), *to).unwrap().required;
            self.drive(*to, required).unwrap_or_else(|errno| panic!("to {to}: errno {errno}"));
        }
        if state == Sqd {
            // rxe drains in its own time, and refuses the next move until it has.
            let start = Instant::now();
            while query("rxe0", self.pair().qpn()).unwrap().is_draining {
                assert!(start.elapsed() < Duration::from_secs(60), "an empty send queue is drained");
                std::thread::yield_now();
            }
        }
    }

    /// Asks the driver, past our table, and keeps our state in step with it.
    fn drive(&self, to: QpState, mask: AttrMask) -> Result<(), i32> {
        let attr = self.everything(to);
        modify_unchecked("rxe0", self.pair().qpn(), &attr, mask | AttrMask::STATE)
    }
}

/// Where rxe differs from the table, and why. Everything else must agree.
fn exception(from: QpState, to: QpState, mask: AttrMask) -> Option<&'static str> {
    let optional = rule(from, to).is_some_and(|rule| rule.optional.contains(AttrMask::ALT_PATH));
    if optional && mask.contains(AttrMask::ALT_PATH) {
        return Some(
            "alternate paths are InfiniBand's: _ib_modify_qp (core/verbs.c) refuses ALT_PATH with EINVAL unless both \
             ports speak rdma_protocol_ib, before the table is asked",
        );
    }
    None
}

#[test]
#[ignore = "needs an rxe device"]
fn the_table_agrees_with_rxe() {
    let _alone = alone();
    let them = Arc::new(End::new(V4[1], SMALL));
    // Keeps the device open from one queue pair to the next.
    let us = End::new(V4[0], SMALL);
    let mut attr = QpAttr::default();
    us.route(&them, Addressing::Verbs).rtr(&mut attr).unwrap();
    let address = attr.address.unwrap();
    let (mut compared, mut refused) = (0, 0);
    let mut excepted = std::collections::BTreeMap::<&str, usize>::new();
    let mut wrong = Vec::new();
    for from in REACHABLE {
        for to in QpState::ALL {
            let required = rule(from, to).map_or(AttrMask::empty(), |rule| rule.required);
            let others = AttrMask::all().difference(AttrMask::STATE | required);
            let masks = std::iter::once(required)
                .chain(required.iter().map(|bit| required.difference(bit)))
                .chain(others.iter().map(|bit| required | bit));
            for mask in masks {
                let bench = Bench::new(&them, &address);
                bench.bring_to(from);
                let table = check(from, to, mask).is_ok();
                let driver = bench.drive(to, mask);
                compared += 1;
                refused += usize::from(!table);
                let agree = match driver {
                    Ok(()) => table,
                    Result::Err(errno) => {
                        let unknown_to_the_library =
                            errno == libc::EOPNOTSUPP && mask.contains(AttrMask::RATE_LIMIT);
                        !table && (errno == libc::EINVAL || unknown_to_the_library)
                    }
                };
                if agree {
                    continue;
                }
                match exception(from, to, mask) {
                    Some(reason) => *excepted.entry(reason).or_default() += 1,
                    None => wrong.push(format!("{from}→{to} with {mask:?}: table {table}, rxe {driver:?}")),
                }
            }
        }
    }
    println!("{compared} masks compared, {refused} of them refused by the table; exceptions: {excepted:#?}");
    let times: Vec<_> = excepted.values().copied().collect();
    assert_eq!(times, [5], "each pair that may carry ALT_PATH: {excepted:?}");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[ignore = "needs an rxe device"]
fn a_psn_cannot_be_changed_in_rts() {
    let _alone = alone();
    for to in [Rts, Sqd] {
        let [us, them] = connected(Sizes::default());
        let before = query("rxe0", us.pair.qpn()).unwrap();
        assert_eq!(
            (before.state, before.sq_psn, before.rq_psn),
            (Rts as u32, PSNS[0], PSNS[1]),
            "{before:?}"
        );
        for (psn, name) in [(AttrMask::SQ_PSN, "SQ_PSN"), (AttrMask::RQ_PSN, "RQ_PSN")] {
            let attr = match psn {
                AttrMask::SQ_PSN => QpAttr { sq_psn: Psn::new(7), ..QpAttr::to(to) },
                _ => QpAttr { rq_psn: Psn::new(7), ..QpAttr::to(to) },
            };
            let error = us.pair.modify(&attr).unwrap_err();
            assert_eq!(
                (error.code(), error.errno()),
                (ErrorCode::Transition, None),
                "the driver was not asked"
            );
            assert!(error.message().contains(name), "{error}");
            let answer = modify_unchecked("rxe0", us.pair.qpn(), &attr, attr.mask());
            assert_eq!(answer, Result::Err(libc::EINVAL), "the kernel refuses it too");
            assert_eq!(query("rxe0", us.pair.qpn()).unwrap(), before, "and changes nothing");
        }
        them.receive(1, 0, 64);
        us.post(1, SEND, 0, 8);
        us.log.successes(1);
        them.log.successes(1);
    }
}
