//! Which transitions a reliable connection's queue pair may make, and with which attributes.
//!
//! Every device asks [`check`] before its driver is called, so that a wrong call is answered by name
//! ("INIT→RTR lacks RQ_PSN") and not by EINVAL. The table is that of the kernel's `ib_modify_qp_is_ok`
//! (`drivers/infiniband/core/verbs.c`, Linux 6.12) for `IB_QPT_RC`, without SQE→RTS: the kernel's table has one
//! row for all types of queue pair there, but a reliable connection never is in SQE (a send error takes it to ERR).

use std::fmt;

use crate::{AttrMask, Error, ErrorCode, QpState, Result};

/// What a transition must carry, and what it may carry besides. `STATE` itself is in neither mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Attributes without which the transition is refused.
    pub required: AttrMask,
    /// Attributes that it may carry too. Anything else is refused.
    pub optional: AttrMask,
}

/// What leaving RESET sets, and INIT→INIT may change.
const IDENTITY: AttrMask = set(&[AttrMask::PKEY_INDEX, AttrMask::PORT, AttrMask::ACCESS_FLAGS]);

/// What every way into RTS may carry.
const RESUME: AttrMask = set(&[
    AttrMask::CUR_STATE,
    AttrMask::ALT_PATH,
    AttrMask::ACCESS_FLAGS,
    AttrMask::MIN_RNR_TIMER,
    AttrMask::PATH_MIG_STATE,
]);

const fn set(attributes: &[AttrMask]) -> AttrMask {
    let (mut mask, mut index) = (AttrMask::empty(), 0);
    while index < attributes.len() {
        mask = mask.union(attributes[index]);
        index += 1;
    }
    mask
}

const fn of(required: AttrMask, optional: AttrMask) -> Rule {
    Rule { required, optional }
}

/// The rule of a transition, or `None` where a reliable connection has no such transition.
#[must_use]
pub const fn rule(from: QpState, to: QpState) -> Option<Rule> {
    use AttrMask as M;
    use QpState::{Err, Init, Reset, Rtr, Rts, Sqd};

    const NONE: AttrMask = AttrMask::empty();
    Some(match (from, to) {
        (_, Reset) => const { of(NONE, NONE) },
        (Reset, Err) => return None,
        (_, Err) => const { of(NONE, NONE) },
        (Reset, Init) => const { of(IDENTITY, NONE) },
        (Init, Init) => const { of(NONE, IDENTITY) },
        (Init, Rtr) => {
            const {
                of(
                    set(&[
                        M::AV,
                        M::PATH_MTU,
                        M::DEST_QPN,
                        M::RQ_PSN,
                        M::MAX_DEST_RD_ATOMIC,
                        M::MIN_RNR_TIMER,
                    ]),
                    set(&[M::ALT_PATH, M::ACCESS_FLAGS, M::PKEY_INDEX]),
                )
            }
        }
        (Rtr, Rts) => {
            const { of(set(&[M::TIMEOUT, M::RETRY_CNT, M::RNR_RETRY, M::SQ_PSN, M::MAX_QP_RD_ATOMIC]), RESUME) }
        }
        (Rts | Sqd, Rts) => const { of(NONE, RESUME) },
        (Rts, Sqd) => const { of(NONE, M::EN_SQD_ASYNC_NOTIFY) },
        (Sqd, Sqd) => {
            const {
                of(
                    NONE,
                    set(&[
                        IDENTITY,
                        M::AV,
                        M::TIMEOUT,
                        M::RETRY_CNT,
                        M::RNR_RETRY,
                        M::MAX_QP_RD_ATOMIC,
                        M::MAX_DEST_RD_ATOMIC,
                        M::ALT_PATH,
                        M::MIN_RNR_TIMER,
                        M::PATH_MIG_STATE,
                    ]),
                )
            }
        }
        _ => return None,
    })
}

/// Why a transition was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The state that the queue pair is in.
    pub from: QpState,
    /// The state that was asked for.
    pub to: QpState,
    /// Required attributes that are not there. Empty when the transition itself does not exist.
    pub missing: AttrMask,
    /// Attributes that have no place in this transition.
    pub foreign: AttrMask,
    /// Whether reliable connections have such a transition at all.
    pub exists: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}→{}", self.from, self.to)?;
        if !self.exists {
            return f.write_str(" is no transition of a reliable connection");
        }
        if !self.missing.is_empty() {
            write!(f, " lacks {}", Names(self.missing))?;
        }
        if !self.missing.is_empty() && !self.foreign.is_empty() {
            f.write_str(" and")?;
        }
        if !self.foreign.is_empty() {
            write!(f, " does not take {}", Names(self.foreign))?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(ErrorCode::Transition, refusal.to_string())
    }
}

struct Names(AttrMask);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unnamed = self.0.difference(AttrMask::all());
        let mut separator = "";
        for (name, _) in self.0.iter_names() {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        if !unnamed.is_empty() {
            write!(f, "{separator}0x{:x}", unnamed.bits())?;
        }
        Ok(())
    }
}

/// Whether a queue pair in state `from` may move to `to` with exactly the attributes of `mask`.
///
/// `mask` may or may not contain [`AttrMask::STATE`]: moving is what the call is about.
///
/// # Errors
/// A [`Refusal`] that names every missing and every foreign attribute.
pub fn check(from: QpState, to: QpState, mask: AttrMask) -> std::result::Result<(), Refusal> {
    let carried = mask.difference(AttrMask::STATE);
    let Some(rule) = rule(from, to) else {
        return Err(Refusal { from, to, missing: AttrMask::empty(), foreign: carried, exists: false });
    };
    let missing = rule.required.difference(carried);
    let foreign = carried.difference(rule.required | rule.optional);
    if missing.is_empty() && foreign.is_empty() {
        Ok(())
    } else {
        Err(Refusal { from, to, missing, foreign, exists: true })
    }
}

/// [`check`] for a queue pair's attributes as the devices hold them; gives the state that it moves to.
///
/// # Errors
/// [`ErrorCode::Transition`] with the names of what is missing or foreign.
pub fn check_attr(from: QpState, attr: &crate::QpAttr) -> Result<QpState> {
    let to = attr.state.unwrap_or(from);
    check(from, to, attr.mask())?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masks_are_those_measured_on_rxe() {
        let bits = |from, to| rule(from, to).unwrap().required.bits() | AttrMask::STATE.bits();
        assert_eq!(bits(QpState::Reset, QpState::Init), 0x39);
        assert_eq!(bits(QpState::Init, QpState::Rtr), 0x12_9181);
        assert_eq!(bits(QpState::Rtr, QpState::Rts), 0x1_2E01);
    }

    #[test]
    fn a_refusal_names_what_is_wrong() {
        let mask = rule(QpState::Init, QpState::Rtr).unwrap().required;
        let refusal = check(QpState::Init, QpState::Rtr, mask.difference(AttrMask::RQ_PSN)).unwrap_err();
        assert_eq!(refusal.to_string(), "INIT→RTR lacks RQ_PSN");
        let refusal = check(QpState::Rts, QpState::Rts, AttrMask::SQ_PSN).unwrap_err();
        assert_eq!(refusal.to_string(), "RTS→RTS does not take SQ_PSN");
        let refusal = check(QpState::Reset, QpState::Rts, AttrMask::empty()).unwrap_err();
        assert_eq!(refusal.to_string(), "RESET→RTS is no transition of a reliable connection");
    }
}
