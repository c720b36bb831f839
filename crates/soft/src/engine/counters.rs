//! What an engine counts.

use super::regions::Refusal;

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// The counters of an engine, from 0 when it was made. All are public and plain: reading one costs a load, and
        /// [`Counters::iter`] gives them by name.
        ///
        /// Where the kernel's `rdma_rxe` counts the same thing, the name is that of its `hw_counters`
        /// (`drivers/infiniband/sw/rxe/rxe_hw_counters.c`). Of those only `link_downed` is missing: there is no port that goes
        /// down.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters { $($(#[$doc])+ pub $name: u64,)+ }

        impl Counters {
            /// The names, in the order of [`Counters::iter`].
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)+];

            /// Each counter's name and value.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    // -- rxe's own ------------------------------------------------------------------------------------------------
    /// Packets sent, those sent again among them.
    sent_pkts,
    /// Packets received that reached a queue pair.
    rcvd_pkts,
    /// Requests that had been received before (IBTA 9.7.5.1.4).
    duplicate_request,
    /// Requests with a PSN after the expected one: something before them is missing.
    out_of_seq_request,
    /// RNR NAKs received.
    rcvd_rnr_err,
    /// RNR NAKs sent.
    send_rnr_err,
    /// PSN sequence error NAKs (0x60) received.
    rcvd_seq_err,
    /// Requests acknowledged together with a later one.
    ack_deferred,
    /// Work requests that ended with RETRY_EXC_ERR.
    retry_exceeded_err,
    /// Work requests that ended with RNR_RETRY_EXC_ERR.
    retry_rnr_exceeded_err,
    /// Times that the requester went back to send again, for whatever reason.
    completer_retry_err,
    /// Packets that could not be sent.
    send_err,
    /// SENDs that have completed, with success.
    rdma_sends,
    /// SENDs received whole.
    rdma_recvs,

    // -- requester ------------------------------------------------------------------------------------------------
    /// Bytes of payload in requests and READ responses sent, those sent again among them.
    sent_bytes,
    /// Packets of requests that were sent again.
    retransmitted_pkts,
    /// Retransmission timers that ran out.
    timeouts,
    /// Responses that showed that a READ response or the acknowledgement of an atomic is missing.
    implied_nak,
    /// Invalid request NAKs (0x61) received.
    rcvd_invalid_request,
    /// Remote access error NAKs (0x62) received.
    rcvd_access_err,
    /// Remote operational error NAKs (0x63 and unknown codes) received.
    rcvd_operational_err,
    /// Work requests flushed, of both queues.
    flushed,
    /// READs completed.
    rdma_reads,
    /// WRITEs completed.
    rdma_writes,
    /// Atomics completed.
    rdma_atomics,
    /// Windows bound.
    binds,
    /// Windows' bindings ended, by either side.
    invalidates,

    // -- responder ------------------------------------------------------------------------------------------------
    /// Bytes of payload received and placed.
    rcvd_bytes,
    /// Acknowledgements sent, NAKs not among them.
    sent_acks,
    /// Acknowledgements that stayed behind what answers the message.
    ack_held,
    /// PSN sequence error NAKs (0x60) sent.
    sent_seq_err,
    /// PSN sequence error NAKs that the rate limit held back.
    limited_seq_err,
    /// Invalid request NAKs (0x61) sent.
    sent_invalid_request,
    /// Remote access error NAKs (0x62) sent.
    sent_access_err,
    /// Remote operational error NAKs (0x63) sent.
    sent_operational_err,
    /// READs executed for the peer.
    responded_reads,
    /// READs executed anew for the peer after a response was lost.
    replayed_reads,
    /// Atomics executed for the peer.
    responded_atomics,
    /// Stored results of atomics sent again.
    replayed_atomics,
    /// Acknowledgements sent for duplicates of SENDs and WRITEs.
    replayed_acks,
    /// Refused: no such key, or that of a region without remote rights.
    refused_unknown_key,
    /// Refused: the key of a window bound on another queue pair.
    refused_other_qp,
    /// Refused: the key, or the queue pair, does not give the right.
    refused_rights,
    /// Refused: beyond the range that the key opens.
    refused_bounds,

    // -- congestion -----------------------------------------------------------------------------------------------
    /// Packets received that a switch had marked with CE.
    rcvd_ecn_marked,
    /// Congestion notices (CNP) sent.
    sent_cnps,
    /// Congestion notices received for a connection.
    rcvd_cnps,

    // -- dropped in silence, one per reason -------------------------------------------------------------------------
    /// Shorter than its headers, its padding and the ICRC.
    dropped_length,
    /// A transport header version other than 0.
    dropped_version,
    /// An operation of the RC transport that does not exist or is not supported.
    dropped_opcode,
    /// A transport other than RC.
    dropped_transport,
    /// No queue pair has this number.
    dropped_qpn,
    /// The queue pair's state takes no such packet.
    dropped_state,
    /// The source or destination address is not that of the connection.
    dropped_address,
    /// The UDP source port is not the one that the peer has announced.
    dropped_source_port,
    /// A P_Key other than that of the default partition.
    dropped_pkey,
    /// A wrong ICRC.
    dropped_icrc,
    /// A request out of sequence, for which nothing is answered any more: the NAK was sent, or is held back.
    dropped_out_of_seq,
    /// A duplicate of a READ or atomic that the resource table does not hold (any more).
    dropped_duplicate,
    /// A request while the peer waits for the end of an RNR NAK.
    dropped_rnr_wait,
    /// A response with a PSN that no outstanding request has: late, or forged.
    dropped_response_psn,
    /// A response whose kind does not fit the request with its PSN.
    dropped_response_kind,
    /// An acknowledgement with a reserved syndrome.
    dropped_syndrome,
    /// A congestion notice that is none of a connection.
    dropped_cnp,
}

impl Counters {
    /// Counts a request whose key opens nothing to it, or not that.
    pub(super) fn count_refusal(&mut self, why: Refusal) {
        match why {
            Refusal::UnknownKey => self.refused_unknown_key += 1,
            Refusal::OtherQueuePair => self.refused_other_qp += 1,
            Refusal::Rights => self.refused_rights += 1,
            Refusal::Bounds => self.refused_bounds += 1,
        }
    }

    /// How many packets were dropped in silence, whatever the reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.iter().filter(|(name, _)| name.starts_with("dropped_")).map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_counter_has_one_name_and_its_own_value() {
        let names: HashSet<_> = Counters::NAMES.iter().collect();
        assert_eq!(names.len(), Counters::NAMES.len());
        let counters =
            Counters { duplicate_request: 3, dropped_icrc: 4, dropped_qpn: 5, ..Counters::default() };
        let listed: Vec<_> = counters.iter().filter(|(_, value)| *value != 0).collect();
        assert_eq!(listed, [("duplicate_request", 3), ("dropped_qpn", 5), ("dropped_icrc", 4)]);
        assert_eq!(counters.dropped(), 9);
        assert!(counters.iter().map(|(name, _)| name).eq(Counters::NAMES.iter().copied()));
    }

    #[test]
    fn names_that_rxe_has_are_rxes() {
        let rxe = [
            "sent_pkts",
            "rcvd_pkts",
            "duplicate_request",
            "out_of_seq_request",
            "rcvd_rnr_err",
            "send_rnr_err",
            "rcvd_seq_err",
            "ack_deferred",
            "retry_exceeded_err",
            "retry_rnr_exceeded_err",
            "completer_retry_err",
            "send_err",
            "rdma_sends",
            "rdma_recvs",
        ];
        assert_eq!(Counters::NAMES[..rxe.len()], rxe);
    }
}
