//! The bytes of RoCEv2 reliable connections: headers, opcodes and the invariant CRC. Parse and emit, nothing else.
//!
//! A received UDP payload becomes a [`Packet`], whose lengths are checked once, or a reason why not ([`Malformed`]).
//! A packet to send begins as [`Headers`]; [`IcrcContext::finish`] ends it. One file per header, each in one order:
//! layout, fields, bytes in and out, `Display`.
//!
//! ```
//! use secure_rdma_roce::{Bth, Endpoints, Extension, Headers, IcrcCheck, IcrcContext, Opcode, Packet, PacketPsn};
//!
//! let endpoints = Endpoints::V4 { source: [10, 0, 0, 2].into(), destination: [10, 0, 0, 1].into() };
//! let flow = IcrcContext::new(endpoints, 0xC123, secure_rdma_roce::UDP_PORT);
//! let payload = b"hello, world!";
//!
//! let bth = Bth { ack_request: true, ..Bth::new(Opcode::SendOnly, 0x11, PacketPsn::new(0xFF_FFFE)) };
//! let headers = Headers::new(bth, Extension::None, payload.len());
//! let mut packet = vec![0; headers.packet_length(payload.len())];
//! let start = headers.emit(&mut packet).ok_or("no room")?;
//! packet[start..start + payload.len()].copy_from_slice(payload);
//! flow.finish(0, &mut packet).ok_or("no room")?;
//! assert!(packet.ends_with(&[0x2c, 0x20, 0xa8, 0x3a]));
//!
//! assert_eq!(flow.check(0, &packet), IcrcCheck::Expected);
//! assert_eq!(Packet::new_checked(&packet)?.payload(), payload);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Facts about the protocol are from a brief that was measured against `rdma_rxe`; "brief §" in comments means it.

#![forbid(unsafe_code)]

pub mod aeth;
pub mod atomic_ack_eth;
pub mod atomic_eth;
pub mod bth;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gf2;
mod headers;
pub mod icrc;
mod id_solver;
pub mod ieth;
pub mod imm_dt;
mod key;
mod malformed;
mod opcode;
mod packet;
mod psn;
pub mod reth;

pub use aeth::{Aeth, Credits, NakCode, RnrTimer, Syndrome};
pub use atomic_ack_eth::AtomicAckEth;
pub use atomic_eth::AtomicEth;
pub use bth::Bth;
pub use headers::{Extension, Headers};
pub use icrc::{Endpoints, IcrcCheck, IcrcContext};
pub use id_solver::{Ipv4Difference, solve_id};
pub use ieth::Ieth;
pub use imm_dt::ImmDt;
pub use key::PacketKey;
pub use malformed::Malformed;
pub use opcode::{Opcode, PayloadRule};
pub use packet::Packet;
pub use psn::PacketPsn;
pub use reth::Reth;

/// The UDP destination port of RoCEv2.
pub const UDP_PORT: u16 = 4791;
