//! Numbers that name things: queue pairs, ports, partitions and keys.

use std::fmt;

/// The number of a queue pair: 24 bits (IBTA 9.2.4.3).
///
/// 0 and 1 belong to subnet management and to the communication manager's GSI queue pair, 0xFFFFFF means
/// "multicast" in a packet. None of the three can be the number of a reliable connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Qpn(u32);

impl Qpn {
    /// Takes a number from 2 to 0xFFFFFE; anything else is no reliable connection's number.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value >= 2 && value < 0x00FF_FFFF { Some(Self(value)) } else { None }
    }

    /// The number, in the low 24 bits.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Qpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:06x}", self.0)
    }
}

impl fmt::Debug for Qpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qpn({self})")
    }
}

/// A local identifier: the address of a port within an InfiniBand subnet. RoCE ports have none and say 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lid(pub u16);

impl Lid {
    /// Whether a packet can be sent to this LID: 1 to 0xBFFF (0xC000 and above is multicast, IBTA 4.1.3).
    #[must_use]
    pub const fn is_unicast(self) -> bool {
        self.0 >= 1 && self.0 <= 0xBFFF
    }
}

impl fmt::Display for Lid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A partition key. Bit 15 says full member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PKey(pub u16);

impl PKey {
    /// The default partition, full member: what every RoCE port has at index 0.
    pub const DEFAULT: Self = Self(0xFFFF);
}

/// The key by which local work requests name a registered region. Meaningless outside the process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LKey(pub u32);

impl fmt::Debug for LKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LKey(…)")
    }
}

/// The key by which a peer names a registered region. A secret: it never shows in `Debug`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RKey(u32);

impl RKey {
    /// Wraps a key that a device or a peer gave.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// The key itself. Whoever calls this answers for where it goes.
    #[must_use]
    pub const fn expose(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for RKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RKey(…)")
    }
}
