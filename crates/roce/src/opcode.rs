//! The operations of a reliable connection, by the number in a BTH's first byte (brief §2.3; `ib_pack.h`).

use std::fmt;

use crate::bth;

/// What a packet does: the reliable connection's opcodes, and the congestion notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // the names are the specification's
pub enum Opcode {
    SendFirst = 0x00,
    SendMiddle = 0x01,
    SendLast = 0x02,
    SendLastWithImmediate = 0x03,
    SendOnly = 0x04,
    SendOnlyWithImmediate = 0x05,
    WriteFirst = 0x06,
    WriteMiddle = 0x07,
    WriteLast = 0x08,
    WriteLastWithImmediate = 0x09,
    WriteOnly = 0x0A,
    WriteOnlyWithImmediate = 0x0B,
    ReadRequest = 0x0C,
    ReadResponseFirst = 0x0D,
    ReadResponseMiddle = 0x0E,
    ReadResponseLast = 0x0F,
    ReadResponseOnly = 0x10,
    Acknowledge = 0x11,
    AtomicAcknowledge = 0x12,
    CompareSwap = 0x13,
    FetchAdd = 0x14,
    SendLastWithInvalidate = 0x16,
    SendOnlyWithInvalidate = 0x17,
    /// Known so that it can be counted; its FETH is not read, since rxe's FLUSH has an ICRC of its own (brief §2.3).
    Flush = 0x1C,
    AtomicWrite = 0x1D,
    /// Congestion notification packet: no opcode of a reliable connection, but sent to one.
    Cnp = 0x81,
}

/// How long the payload of a packet may be, in bytes; padding is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadRule {
    /// Exactly the path MTU: First and Middle packets.
    PathMtu,
    /// 1 to the path MTU: Last packets.
    NotEmpty,
    /// 0 to the path MTU: Only packets.
    Any,
    /// None at all.
    None,
    /// Exactly 8: ATOMIC WRITE.
    Eight,
}

impl PayloadRule {
    /// Whether `length` bytes of payload keep the rule at a path MTU of `path_mtu` bytes.
    #[must_use]
    pub const fn allows(self, length: usize, path_mtu: usize) -> bool {
        match self {
            Self::PathMtu => length == path_mtu,
            Self::NotEmpty => 1 <= length && length <= path_mtu,
            Self::Any => length <= path_mtu,
            Self::None => length == 0,
            Self::Eight => length == 8,
        }
    }
}

const BY_CODE: [Option<Opcode>; 256] = {
    let mut table = [None; 256];
    let mut index = 0;
    while index < Opcode::ALL.len() {
        let opcode = Opcode::ALL[index];
        table[opcode as usize] = Some(opcode);
        index += 1;
    }
    table
};

impl Opcode {
    /// Every opcode, in the order of the codes.
    pub const ALL: [Self; 26] = [
        Self::SendFirst,
        Self::SendMiddle,
        Self::SendLast,
        Self::SendLastWithImmediate,
        Self::SendOnly,
        Self::SendOnlyWithImmediate,
        Self::WriteFirst,
        Self::WriteMiddle,
        Self::WriteLast,
        Self::WriteLastWithImmediate,
        Self::WriteOnly,
        Self::WriteOnlyWithImmediate,
        Self::ReadRequest,
        Self::ReadResponseFirst,
        Self::ReadResponseMiddle,
        Self::ReadResponseLast,
        Self::ReadResponseOnly,
        Self::Acknowledge,
        Self::AtomicAcknowledge,
        Self::CompareSwap,
        Self::FetchAdd,
        Self::SendLastWithInvalidate,
        Self::SendOnlyWithInvalidate,
        Self::Flush,
        Self::AtomicWrite,
        Self::Cnp,
    ];

    /// The opcode of a code; `None` for a reserved code and for other transports' codes.
    #[inline]
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        BY_CODE[code as usize]
    }

    /// The code in a BTH's first byte.
    #[inline]
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether it asks for something: SEND, RDMA WRITE, RDMA READ Request, atomics, FLUSH, ATOMIC WRITE.
    #[inline]
    #[must_use]
    pub const fn is_request(self) -> bool {
        !self.is_response() && !matches!(self, Self::Cnp)
    }

    /// Whether it answers a request: READ responses, Acknowledge, ATOMIC Acknowledge.
    #[inline]
    #[must_use]
    pub const fn is_response(self) -> bool {
        self.is_read_response() || matches!(self, Self::Acknowledge | Self::AtomicAcknowledge)
    }

    /// Whether it is a part of a SEND.
    #[inline]
    #[must_use]
    pub const fn is_send(self) -> bool {
        matches!(
            self,
            Self::SendFirst
                | Self::SendMiddle
                | Self::SendLast
                | Self::SendLastWithImmediate
                | Self::SendOnly
                | Self::SendOnlyWithImmediate
                | Self::SendLastWithInvalidate
                | Self::SendOnlyWithInvalidate
        )
    }

    /// Whether it is a part of an RDMA WRITE. ATOMIC WRITE is none.
    #[inline]
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(
            self,
            Self::WriteFirst
                | Self::WriteMiddle
                | Self::WriteLast
                | Self::WriteLastWithImmediate
                | Self::WriteOnly
                | Self::WriteOnlyWithImmediate
        )
    }

    /// Whether it is a part of an answer to an RDMA READ Request.
    #[inline]
    #[must_use]
    pub const fn is_read_response(self) -> bool {
        matches!(
            self,
            Self::ReadResponseFirst
                | Self::ReadResponseMiddle
                | Self::ReadResponseLast
                | Self::ReadResponseOnly
        )
    }

    /// Whether it is a request for an atomic with an answer of its own: `CmpSwap` and `FetchAdd`.
    #[inline]
    #[must_use]
    pub const fn is_atomic(self) -> bool {
        self.has_atomic_eth()
    }

    /// Whether it begins a message of several packets.
    #[inline]
    #[must_use]
    pub const fn is_first(self) -> bool {
        matches!(self, Self::SendFirst | Self::WriteFirst | Self::ReadResponseFirst)
    }

    /// Whether it stands between the first and the last packet of a message.
    #[inline]
    #[must_use]
    pub const fn is_middle(self) -> bool {
        matches!(self, Self::SendMiddle | Self::WriteMiddle | Self::ReadResponseMiddle)
    }

    /// Whether it ends a message of several packets.
    #[inline]
    #[must_use]
    pub const fn is_last(self) -> bool {
        matches!(
            self,
            Self::SendLast
                | Self::SendLastWithImmediate
                | Self::SendLastWithInvalidate
                | Self::WriteLast
                | Self::WriteLastWithImmediate
                | Self::ReadResponseLast
        )
    }

    /// Whether it is a whole message: also all that never has several packets.
    #[inline]
    #[must_use]
    pub const fn is_only(self) -> bool {
        !self.is_first() && !self.is_middle() && !self.is_last()
    }

    /// Whether an `ImmDt` follows.
    #[inline]
    #[must_use]
    pub const fn has_immediate(self) -> bool {
        matches!(
            self,
            Self::SendLastWithImmediate
                | Self::SendOnlyWithImmediate
                | Self::WriteLastWithImmediate
                | Self::WriteOnlyWithImmediate
        )
    }

    /// Whether an IETH follows.
    #[inline]
    #[must_use]
    pub const fn has_invalidate(self) -> bool {
        matches!(self, Self::SendLastWithInvalidate | Self::SendOnlyWithInvalidate)
    }

    /// Whether a RETH follows. That of [`Opcode::Flush`] has a FETH before it, every other one is the first header.
    #[inline]
    #[must_use]
    pub const fn has_reth(self) -> bool {
        matches!(
            self,
            Self::WriteFirst
                | Self::WriteOnly
                | Self::WriteOnlyWithImmediate
                | Self::ReadRequest
                | Self::Flush
                | Self::AtomicWrite
        )
    }

    /// Whether an AETH follows.
    #[inline]
    #[must_use]
    pub const fn has_aeth(self) -> bool {
        matches!(
            self,
            Self::ReadResponseFirst
                | Self::ReadResponseLast
                | Self::ReadResponseOnly
                | Self::Acknowledge
                | Self::AtomicAcknowledge
        )
    }

    /// Whether an `AtomicETH` follows.
    #[inline]
    #[must_use]
    pub const fn has_atomic_eth(self) -> bool {
        matches!(self, Self::CompareSwap | Self::FetchAdd)
    }

    /// Whether an `AtomicAckETH` follows, behind the AETH.
    #[inline]
    #[must_use]
    pub const fn has_atomic_ack(self) -> bool {
        matches!(self, Self::AtomicAcknowledge)
    }

    /// Bytes of the BTH and the extension headers. The 16 reserved bytes of a CNP count as a header.
    #[inline]
    #[must_use]
    pub const fn header_length(self) -> usize {
        bth::LENGTH + self.extension_length()
    }

    /// Bytes of the extension headers alone.
    #[inline]
    #[must_use]
    pub const fn extension_length(self) -> usize {
        match self {
            Self::SendFirst
            | Self::SendMiddle
            | Self::SendLast
            | Self::SendOnly
            | Self::WriteMiddle
            | Self::WriteLast
            | Self::ReadResponseMiddle => 0,
            Self::SendLastWithImmediate
            | Self::SendOnlyWithImmediate
            | Self::SendLastWithInvalidate
            | Self::SendOnlyWithInvalidate
            | Self::WriteLastWithImmediate
            | Self::ReadResponseFirst
            | Self::ReadResponseLast
            | Self::ReadResponseOnly
            | Self::Acknowledge => 4,
            Self::AtomicAcknowledge => 12,
            Self::WriteFirst | Self::WriteOnly | Self::ReadRequest | Self::AtomicWrite | Self::Cnp => 16,
            Self::WriteOnlyWithImmediate | Self::Flush => 20,
            Self::CompareSwap | Self::FetchAdd => 28,
        }
    }

    /// How long the payload may be.
    #[inline]
    #[must_use]
    pub const fn payload_rule(self) -> PayloadRule {
        match self {
            Self::SendFirst
            | Self::SendMiddle
            | Self::WriteFirst
            | Self::WriteMiddle
            | Self::ReadResponseFirst
            | Self::ReadResponseMiddle => PayloadRule::PathMtu,
            Self::SendLast
            | Self::SendLastWithImmediate
            | Self::SendLastWithInvalidate
            | Self::WriteLast
            | Self::WriteLastWithImmediate
            | Self::ReadResponseLast => PayloadRule::NotEmpty,
            Self::SendOnly
            | Self::SendOnlyWithImmediate
            | Self::SendOnlyWithInvalidate
            | Self::WriteOnly
            | Self::WriteOnlyWithImmediate
            | Self::ReadResponseOnly => PayloadRule::Any,
            Self::ReadRequest
            | Self::Acknowledge
            | Self::AtomicAcknowledge
            | Self::CompareSwap
            | Self::FetchAdd
            | Self::Flush
            | Self::Cnp => PayloadRule::None,
            Self::AtomicWrite => PayloadRule::Eight,
        }
    }

    /// The name, as the specification writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SendFirst => "SEND First",
            Self::SendMiddle => "SEND Middle",
            Self::SendLast => "SEND Last",
            Self::SendLastWithImmediate => "SEND Last with Immediate",
            Self::SendOnly => "SEND Only",
            Self::SendOnlyWithImmediate => "SEND Only with Immediate",
            Self::WriteFirst => "RDMA WRITE First",
            Self::WriteMiddle => "RDMA WRITE Middle",
            Self::WriteLast => "RDMA WRITE Last",
            Self::WriteLastWithImmediate => "RDMA WRITE Last with Immediate",
            Self::WriteOnly => "RDMA WRITE Only",
            Self::WriteOnlyWithImmediate => "RDMA WRITE Only with Immediate",
            Self::ReadRequest => "RDMA READ Request",
            Self::ReadResponseFirst => "RDMA READ Response First",
            Self::ReadResponseMiddle => "RDMA READ Response Middle",
            Self::ReadResponseLast => "RDMA READ Response Last",
            Self::ReadResponseOnly => "RDMA READ Response Only",
            Self::Acknowledge => "Acknowledge",
            Self::AtomicAcknowledge => "ATOMIC Acknowledge",
            Self::CompareSwap => "CmpSwap",
            Self::FetchAdd => "FetchAdd",
            Self::SendLastWithInvalidate => "SEND Last with Invalidate",
            Self::SendOnlyWithInvalidate => "SEND Only with Invalidate",
            Self::Flush => "FLUSH",
            Self::AtomicWrite => "ATOMIC WRITE",
            Self::Cnp => "CNP",
        }
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
