//! The attributes of a queue pair that a transition carries.

use bitflags::bitflags;

use crate::{Access, AddressVector, PathMtu, Psn, QpState, Qpn};

bitflags! {
    /// Which attributes a transition carries. The bits are those of `enum ibv_qp_attr_mask`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct AttrMask: u32 {
        /// The state to move to.
        const STATE = 1;
        /// The state that the caller believes to be current.
        const CUR_STATE = 1 << 1;
        /// Ask for an event when the send queue is drained.
        const EN_SQD_ASYNC_NOTIFY = 1 << 2;
        /// What the peer may do.
        const ACCESS_FLAGS = 1 << 3;
        /// Index into the P_Key table.
        const PKEY_INDEX = 1 << 4;
        /// The local port.
        const PORT = 1 << 5;
        /// Queue key; datagrams only.
        const QKEY = 1 << 6;
        /// The address vector.
        const AV = 1 << 7;
        /// The path MTU.
        const PATH_MTU = 1 << 8;
        /// The retransmission timeout.
        const TIMEOUT = 1 << 9;
        /// How often a request is repeated without an answer.
        const RETRY_CNT = 1 << 10;
        /// How often a request is repeated after an RNR NAK.
        const RNR_RETRY = 1 << 11;
        /// The PSN that the first request from the peer must carry.
        const RQ_PSN = 1 << 12;
        /// READs and atomics outstanding as requester (initiator depth).
        const MAX_QP_RD_ATOMIC = 1 << 13;
        /// An alternate path; not on RoCE.
        const ALT_PATH = 1 << 14;
        /// The wait that an RNR NAK asks of the peer.
        const MIN_RNR_TIMER = 1 << 15;
        /// The PSN that the first own request carries.
        const SQ_PSN = 1 << 16;
        /// READs and atomics accepted as responder (responder resources).
        const MAX_DEST_RD_ATOMIC = 1 << 17;
        /// State of automatic path migration.
        const PATH_MIG_STATE = 1 << 18;
        /// Queue depths.
        const CAP = 1 << 19;
        /// The peer's QPN.
        const DEST_QPN = 1 << 20;
        /// A pacing rate; raw packets only.
        const RATE_LIMIT = 1 << 25;
    }
}

/// The attributes of one transition. What is `None` is not in the mask.
///
/// Only what reliable connections use has a field. The rest of [`AttrMask`] exists so that the transition
/// table can refuse it by name.
#[derive(Clone, Debug, Default)]
pub struct QpAttr {
    /// The state to move to.
    pub state: Option<QpState>,
    /// What the peer may do.
    pub access: Option<Access>,
    /// Index into the port's P_Key table.
    pub pkey_index: Option<u16>,
    /// The local port, from 1.
    pub port: Option<u8>,
    /// Where packets go.
    pub address: Option<AddressVector>,
    /// Payload per packet; the same on both ends.
    pub path_mtu: Option<PathMtu>,
    /// The peer's QPN.
    pub dest_qpn: Option<Qpn>,
    /// The peer's starting PSN.
    pub rq_psn: Option<Psn>,
    /// The own starting PSN.
    pub sq_psn: Option<Psn>,
    /// Retransmission timeout, 0 to 31: 4.096 µs · 2^n; 0 is never.
    pub timeout: Option<u8>,
    /// Repetitions without an answer, 0 to 7. On rxe 7 means for ever.
    pub retry_count: Option<u8>,
    /// Repetitions after an RNR NAK, 0 to 7; 7 means for ever.
    pub rnr_retry: Option<u8>,
    /// Code of the wait that an RNR NAK asks for, 0 to 31 (IBTA table 45; 12 is 0.64 ms, 0 is 655 ms).
    pub min_rnr_timer: Option<u8>,
    /// Initiator depth.
    pub max_rd_atomic: Option<u8>,
    /// Responder resources.
    pub max_dest_rd_atomic: Option<u8>,
}

impl QpAttr {
    /// Attributes that move to `state` and carry nothing else yet.
    #[must_use]
    pub fn to(state: QpState) -> Self {
        Self { state: Some(state), ..Self::default() }
    }

    /// The mask of what is present.
    #[must_use]
    pub fn mask(&self) -> AttrMask {
        [
            (self.state.is_some(), AttrMask::STATE),
            (self.access.is_some(), AttrMask::ACCESS_FLAGS),
            (self.pkey_index.is_some(), AttrMask::PKEY_INDEX),
            (self.port.is_some(), AttrMask::PORT),
            (self.address.is_some(), AttrMask::AV),
            (self.path_mtu.is_some(), AttrMask::PATH_MTU),
            (self.dest_qpn.is_some(), AttrMask::DEST_QPN),
            (self.rq_psn.is_some(), AttrMask::RQ_PSN),
            (self.sq_psn.is_some(), AttrMask::SQ_PSN),
            (self.timeout.is_some(), AttrMask::TIMEOUT),
            (self.retry_count.is_some(), AttrMask::RETRY_CNT),
            (self.rnr_retry.is_some(), AttrMask::RNR_RETRY),
            (self.min_rnr_timer.is_some(), AttrMask::MIN_RNR_TIMER),
            (self.max_rd_atomic.is_some(), AttrMask::MAX_QP_RD_ATOMIC),
            (self.max_dest_rd_atomic.is_some(), AttrMask::MAX_DEST_RD_ATOMIC),
        ]
        .into_iter()
        .filter_map(|(present, bit)| present.then_some(bit))
        .fold(AttrMask::empty(), |mask, bit| mask | bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_stands_for_one_bit_of_the_mask() {
        let psn = Psn::new(1);
        let cases: [(QpAttr, AttrMask); 15] = [
            (QpAttr::to(QpState::Reset), AttrMask::STATE),
            (QpAttr { access: Some(Access::empty()), ..QpAttr::default() }, AttrMask::ACCESS_FLAGS),
            (QpAttr { pkey_index: Some(0), ..QpAttr::default() }, AttrMask::PKEY_INDEX),
            (QpAttr { port: Some(1), ..QpAttr::default() }, AttrMask::PORT),
            (QpAttr { address: Some(AddressVector::default()), ..QpAttr::default() }, AttrMask::AV),
            (QpAttr { path_mtu: Some(PathMtu::Bytes256), ..QpAttr::default() }, AttrMask::PATH_MTU),
            (QpAttr { dest_qpn: Qpn::new(2), ..QpAttr::default() }, AttrMask::DEST_QPN),
            (QpAttr { rq_psn: psn, ..QpAttr::default() }, AttrMask::RQ_PSN),
            (QpAttr { sq_psn: psn, ..QpAttr::default() }, AttrMask::SQ_PSN),
            (QpAttr { timeout: Some(0), ..QpAttr::default() }, AttrMask::TIMEOUT),
            (QpAttr { retry_count: Some(0), ..QpAttr::default() }, AttrMask::RETRY_CNT),
            (QpAttr { rnr_retry: Some(0), ..QpAttr::default() }, AttrMask::RNR_RETRY),
            (QpAttr { min_rnr_timer: Some(0), ..QpAttr::default() }, AttrMask::MIN_RNR_TIMER),
            (QpAttr { max_rd_atomic: Some(0), ..QpAttr::default() }, AttrMask::MAX_QP_RD_ATOMIC),
            (QpAttr { max_dest_rd_atomic: Some(0), ..QpAttr::default() }, AttrMask::MAX_DEST_RD_ATOMIC),
        ];
        for (attr, bit) in cases {
            assert_eq!(attr.mask(), bit);
        }
        assert_eq!(QpAttr::default().mask(), AttrMask::empty());
    }
}
