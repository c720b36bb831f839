//! What a seed turns on.

use super::random::Random;

/// Something that makes a run less comfortable. Each seed enables a random subset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fault {
    /// Each packet is lost with a chance of up to 30 %.
    Loss,
    /// Up to 16 packets in a row are lost.
    Bursts,
    /// Up to 50 % of the packets come twice.
    Duplicates,
    /// A duplicate may come up to 10 seconds later.
    LateDuplicates,
    /// Up to 30 % of the packets are overtaken by up to 64 others.
    Reorder,
    /// Bits of up to 10 % of the packets are flipped, in headers, payload, addresses or the IPv4 ID.
    Corruption,
    /// The delay varies.
    Jitter,
    /// Up to 750 ms one way.
    LongDelay,
    /// Nothing gets through for 2 s of every 5 s.
    Blackholes,
    /// From some time on nothing gets through for ever, in one direction or both.
    DeadLink,
    /// A link of 1 to 100 Mbit/s with a bounded queue.
    SlowLink,
    /// Packets longer than the link's MTU vanish.
    SmallMtu,
    /// The clock jumps ahead while nothing runs, by up to an hour.
    ClockJumps,
    /// Several packets are handled before anything is sent.
    Batches,
    /// Each segment goes out in a call of its own, and with IPv4 ID 0.
    NoSegmentation,
    /// Switches mark packets with CE.
    Congestion,
    /// Receives are posted late.
    LateReceives,
    /// A shared receive queue.
    SharedReceives,
    /// Queue pairs are moved to ERR with work outstanding.
    MoveToError,
    /// Queue pairs are destroyed with packets in flight.
    Destroy,
    /// A queue pair that failed goes to RESET and is used again.
    Reuse,
    /// Requests with a wrong key.
    WrongKeys,
    /// Requests beyond a region's bounds, or without the right.
    WrongBounds,
    /// Messages longer than the receive that they meet.
    ShortReceives,
    /// Atomics at an address that is no multiple of 8.
    Misaligned,
    /// Regions are deregistered under requests of the peer.
    Deregister,
    /// Somebody sends forged packets.
    Forger,
    /// The peer itself, or who has guessed the PSN, keeps no rule.
    MaliciousPeer,
    /// READs.
    Reads,
    /// Atomics.
    Atomics,
    /// Memory windows, and SEND with invalidate.
    Windows,
    /// Several slices per request.
    Gather,
    /// FENCE.
    Fences,
    /// Messages of many packets.
    LongMessages,
    /// Many queue pairs per pair of hosts.
    ManyQueuePairs,
    /// A third host.
    ThirdHost,
    /// Starting PSNs just before the wrap.
    Wrap,
    /// IPv6.
    Ipv6,
    /// Retransmission only when `timeout` has passed.
    FixedTimeout,
    /// A peer with rxe's habits, or with those of hfi1.
    OtherPeer,
    /// A tiny receive buffer at the peer.
    SmallBuffer,
    /// A low limit of NAKs for missing packets.
    NakLimit,
    /// Send queues are drained, and go on.
    Drain,
}

impl Fault {
    pub const ALL: [Self; 43] = [
        Self::Loss,
        Self::Bursts,
        Self::Duplicates,
        Self::LateDuplicates,
        Self::Reorder,
        Self::Corruption,
        Self::Jitter,
        Self::LongDelay,
        Self::Blackholes,
        Self::DeadLink,
        Self::SlowLink,
        Self::SmallMtu,
        Self::ClockJumps,
        Self::Batches,
        Self::NoSegmentation,
        Self::Congestion,
        Self::LateReceives,
        Self::SharedReceives,
        Self::MoveToError,
        Self::Destroy,
        Self::Reuse,
        Self::WrongKeys,
        Self::WrongBounds,
        Self::ShortReceives,
        Self::Misaligned,
        Self::Deregister,
        Self::Forger,
        Self::MaliciousPeer,
        Self::Reads,
        Self::Atomics,
        Self::Windows,
        Self::Gather,
        Self::Fences,
        Self::LongMessages,
        Self::ManyQueuePairs,
        Self::ThirdHost,
        Self::Wrap,
        Self::Ipv6,
        Self::FixedTimeout,
        Self::OtherPeer,
        Self::SmallBuffer,
        Self::NakLimit,
        Self::Drain,
    ];

    /// In how many of 100 seeds it is enabled: those that end connections, or slow everything down, in fewer.
    fn percent(self) -> u64 {
        match self {
            Self::DeadLink | Self::SmallMtu => 3,
            Self::Deregister | Self::MaliciousPeer => 8,
            Self::LongDelay | Self::Blackholes | Self::MoveToError | Self::Destroy | Self::ShortReceives => {
                15
            }
            Self::WrongKeys | Self::WrongBounds | Self::Misaligned | Self::ThirdHost | Self::SmallBuffer => {
                15
            }
            Self::SlowLink | Self::ClockJumps | Self::Forger | Self::FixedTimeout | Self::OtherPeer => 20,
            Self::NakLimit | Self::Drain => 20,
            Self::Loss | Self::Reads | Self::Atomics | Self::Windows | Self::LongMessages => 60,
            _ => 35,
        }
    }
}

/// A set of faults.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Faults(pub u64);

impl Faults {
    pub fn has(self, fault: Fault) -> bool {
        self.0 >> (fault as u8) & 1 == 1
    }

    pub fn without(self, fault: Fault) -> Self {
        Self(self.0 & !(1 << (fault as u8)))
    }

    pub fn iter(self) -> impl Iterator<Item = Fault> {
        Fault::ALL.into_iter().filter(move |fault| self.has(*fault))
    }
}

/// Everything that a seed decides before the run begins.
#[derive(Clone)]
pub struct Scenario {
    pub seed: u64,
    pub faults: Faults,
    /// Code of the path MTU, 1 to 5.
    pub path_mtu: u8,
    /// Packets after which the workload ends.
    pub packets: u64,
    /// A defect planted into every engine; see the feature `defects`.
    pub defect: Option<u8>,
    /// Whether nobody posts anything unless told to.
    pub idle: bool,
    /// Whether each packet is printed.
    pub trace: bool,
}

impl Scenario {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        // A share of all runs has few faults at once, so that none hides another for ever.
        let density = random.pick(&[25, 60, 100, 100, 140]);
        let mut faults = 0;
        for fault in Fault::ALL {
            if random.below(10_000) < fault.percent() * density {
                faults |= 1 << (fault as u8);
            }
        }
        let path_mtu = random.pick(&[1, 1, 1, 1, 2, 2, 3, 3, 4, 5]);
        let packets = random.pick(&[3_000, 10_000, 12_000, 24_000]);
        Self { seed, faults: Faults(faults), path_mtu, packets, defect: None, idle: false, trace: false }
    }

    pub fn has(&self, fault: Fault) -> bool {
        self.faults.has(fault)
    }

    /// The random numbers of one purpose.
    pub fn random(&self, purpose: u64) -> Random {
        Random::new(self.seed, purpose)
    }
}
