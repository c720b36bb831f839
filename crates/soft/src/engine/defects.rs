//! Defects to plant, one at a time: for tests that prove that the simulation finds them. Without the feature `defects`
//! nothing can be planted, and what asks for one is compiled away.

/// Something that an engine can get wrong.
#[cfg_attr(not(feature = "defects"), allow(dead_code, unreachable_pub))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Defect {
    /// A SEND that is received a second time is delivered a second time.
    SendDeliveredTwice,
    /// One PSN more than the window allows is outstanding.
    WindowOffByOne,
    /// An atomic that is received a second time is executed a second time.
    AtomicExecutedTwice,
    /// What ERR flushes completes in the wrong order.
    FlushOutOfOrder,
    /// A READ response that is sent again reads beyond what was asked for.
    ReplayBeyondRange,
    /// Some completions are lost.
    CompletionLost,
    /// An ACK overtakes the READ responses that are due before it.
    AckOvertakesRead,
    /// Each packet behind a gap is answered with a NAK.
    NakPerPacket,
    /// PSNs are compared as numbers, so that those behind the wrap look old.
    PsnWrapIgnored,
    /// An ACK of what was never sent acknowledges everything.
    AckAheadAccepted,
    /// A window's key opens it on other queue pairs too.
    KeyOnAnyQueuePair,
    /// A request's count on its regions is given back when it is sent, not when it completes.
    CountReleasedEarly,
    /// Progress does not give the retries back.
    RetriesNotReset,
    /// What an RNR NAK refuses is sent again at once.
    RnrWaitIgnored,
    /// The ICRC is not looked at.
    IcrcUnchecked,
    /// Payload and padding may have any length.
    LengthUnchecked,
    /// SEND with invalidate ends no key.
    InvalidationIgnored,
    /// A duplicate counts as a message.
    MsnOnDuplicate,
    /// A remote access error is reported as an invalid request.
    WrongStatus,
    /// A bind's count on its region is given back when it is carried out, not when it completes.
    BindReleasedEarly,
    /// Some requests' counts on their regions are never given back.
    CountNeverReleased,
    /// SQD stops nothing.
    DrainIgnored,
    /// A response with a reserved syndrome is an ACK.
    ReservedSyndromeAccepted,
    /// NAKs for missing packets have no limit.
    NakLimitIgnored,
}

#[cfg(feature = "defects")]
impl Defect {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::SendDeliveredTwice,
        Self::WindowOffByOne,
        Self::AtomicExecutedTwice,
        Self::FlushOutOfOrder,
        Self::ReplayBeyondRange,
        Self::CompletionLost,
        Self::AckOvertakesRead,
        Self::NakPerPacket,
        Self::PsnWrapIgnored,
        Self::AckAheadAccepted,
        Self::KeyOnAnyQueuePair,
        Self::CountReleasedEarly,
        Self::RetriesNotReset,
        Self::RnrWaitIgnored,
        Self::IcrcUnchecked,
        Self::LengthUnchecked,
        Self::InvalidationIgnored,
        Self::MsnOnDuplicate,
        Self::WrongStatus,
        Self::BindReleasedEarly,
        Self::CountNeverReleased,
        Self::DrainIgnored,
        Self::ReservedSyndromeAccepted,
        Self::NakLimitIgnored,
    ];
}
