//! The offer: one side's parameters. What can be decoded is in range; there is no offer with an impossible value.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use minicbor::Encoder;
use secure_rdma_rdma::{PathMtu, Psn, Qpn};

use crate::frame::{Fields, FrameError};
use crate::{KeepAlive, Terms};

/// The version of the exchange that this crate speaks; it speaks no older one.
pub const VERSION: u32 = 1;

/// The device's part, at the most, in bytes.
pub(crate) const MAX_DEVICE_PART: usize = 1024;

const BINDING_LENGTH: usize = 32;
/// A receive buffer holds at least the smallest packet. Whether it holds one of the agreed path MTU, the exchange judges.
const MIN_SEGMENT: u64 = 256;
const MAX_SEGMENT: u64 = 1 << 30;
/// With fewer, two sides could wait for each other.
const MIN_CREDITS: u64 = 4;
const MAX_MESSAGE: u64 = (1 << 53) - 1;

const KEY_VERSION: i64 = 1;
const KEY_MIN_VERSION: i64 = 2;
const KEY_QPN: i64 = 3;
const KEY_PSN: i64 = 4;
const KEY_PATH_MTU: i64 = 5;
const KEY_RESPONDER_RESOURCES: i64 = 6;
const KEY_INITIATOR_DEPTH: i64 = 7;
const KEY_MAX_MESSAGE_SIZE: i64 = 8;
const KEY_SEGMENT_SIZE: i64 = 9;
const KEY_CREDITS: i64 = 10;
const KEY_DEVICE_PART: i64 = 11;
const KEY_BINDING: i64 = 12;
const KEY_KEEP_ALIVE_INTERVAL: i64 = 13;

/// One side's parameters.
#[derive(Clone, PartialEq, Eq)]
pub struct Offer {
    /// The newest version of the exchange that the side speaks, from 1.
    pub version: u32,
    /// The oldest, from 1 to `version`.
    pub min_version: u32,
    /// Its queue pair.
    pub qpn: Qpn,
    /// The PSN of its first request.
    pub psn: Psn,
    /// The largest path MTU that it takes.
    pub path_mtu: PathMtu,
    /// READs and atomics that it serves at once, 1 to 128.
    pub responder_resources: u8,
    /// READs and atomics that it wants outstanding, 1 to 128.
    pub initiator_depth: u8,
    /// What its upper layer states: message size 1 to 2^53−1, segment size 256 to 2^30 and at least
    /// the agreed path MTU, credits 4 to 65535.
    pub terms: Terms,
    /// Its device's part, at most 1024 bytes, opaque here.
    pub device_part: Vec<u8>,
    /// What the TLS session exported for the sender's role: an offer of another session does not have it.
    pub binding: [u8; 32],
    /// How long it is between two of its signs of life, 10 ms to 60 s, in whole milliseconds (rounded up). A side that
    /// states none has the default.
    pub keep_alive_interval: Option<Duration>,
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer")
            .field("version", &self.version)
            .field("min_version", &self.min_version)
            .field("qpn", &self.qpn)
            .field("path_mtu", &self.path_mtu)
            .field("responder_resources", &self.responder_resources)
            .field("initiator_depth", &self.initiator_depth)
            .field("terms", &self.terms)
            .field("keep_alive_interval", &self.keep_alive_interval)
            .finish_non_exhaustive()
    }
}

/// Why an offer cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OfferError {
    /// No version in common.
    Version {
        /// The peer's oldest.
        oldest: u64,
        /// The peer's newest.
        newest: u64,
    },
    /// A value that cannot be, or is not allowed.
    Value {
        /// Which.
        field: &'static str,
        /// What it was; `None` for a secret.
        value: Option<u64>,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Its receive buffers do not hold a packet of the agreed path MTU.
    Segment {
        /// Bytes of its receive buffers.
        segment_size: u32,
        /// The agreed path MTU.
        path_mtu: PathMtu,
    },
    /// It is bound to another TLS session, or to the other role: replayed, relayed or reflected.
    Binding,
}

impl fmt::Display for OfferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { oldest, newest } => write!(
                f,
                "the offer's protocol versions {oldest} to {newest} do not meet ours, {VERSION} to {VERSION}: update the \
                 older side"
            ),
            Self::Value { field, value: Some(value), allowed } => {
                write!(f, "the offer's {field} is {value}: {allowed} is allowed")
            }
            Self::Value { field, value: None, allowed } => {
                write!(f, "the offer's {field} is out of range: {allowed} is allowed")
            }
            Self::Segment { segment_size, path_mtu } => write!(
                f,
                "the offer's segment size is {segment_size}: at least one packet of the agreed path MTU, {path_mtu}, is \
                 needed"
            ),
            Self::Binding => {
                f.write_str(
                "the offer is bound to another TLS session: it was replayed, or a proxy ends TLS between the two sides (let it \
                 pass TLS on)",
            )
            }
        }
    }
}

impl std::error::Error for OfferError {}

impl From<OfferError> for FrameError {
    fn from(cause: OfferError) -> Self {
        Self::Offer(cause)
    }
}

impl Offer {
    pub(crate) const FIELDS: &'static [i64] = &[
        KEY_VERSION,
        KEY_MIN_VERSION,
        KEY_QPN,
        KEY_PSN,
        KEY_PATH_MTU,
        KEY_RESPONDER_RESOURCES,
        KEY_INITIATOR_DEPTH,
        KEY_MAX_MESSAGE_SIZE,
        KEY_SEGMENT_SIZE,
        KEY_CREDITS,
        KEY_DEVICE_PART,
        KEY_BINDING,
        KEY_KEEP_ALIVE_INTERVAL,
    ];

    /// The version that both sides speak: the newest in common.
    #[must_use]
    pub fn common_version(&self) -> u32 {
        self.version.min(VERSION)
    }

    pub(crate) fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut Encoder<W>,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let fields = Self::FIELDS.len() - usize::from(self.keep_alive_interval.is_none());
        encoder
            .map(fields as u64)?
            .i64(KEY_VERSION)?
            .u32(self.version)?
            .i64(KEY_MIN_VERSION)?
            .u32(self.min_version)?
            .i64(KEY_QPN)?
            .u32(self.qpn.get())?
            .i64(KEY_PSN)?
            .u32(self.psn.expose())?
            .i64(KEY_PATH_MTU)?
            .u8(self.path_mtu.code())?
            .i64(KEY_RESPONDER_RESOURCES)?
            .u8(self.responder_resources)?
            .i64(KEY_INITIATOR_DEPTH)?
            .u8(self.initiator_depth)?
            .i64(KEY_MAX_MESSAGE_SIZE)?
            .u64(self.terms.max_message_size)?
            .i64(KEY_SEGMENT_SIZE)?
            .u32(self.terms.segment_size)?
            .i64(KEY_CREDITS)?
            .u16(self.terms.credits)?
            .i64(KEY_DEVICE_PART)?
            .bytes(&self.device_part)?
            .i64(KEY_BINDING)?
            .bytes(&self.binding)?;
        if let Some(interval) = self.keep_alive_interval {
            encoder.i64(KEY_KEEP_ALIVE_INTERVAL)?.u64(milliseconds(interval))?;
        }
        Ok(())
    }

    pub(crate) fn decode(fields: &Fields<'_>) -> Result<Self, FrameError> {
        // Versions first: of an offer in a version that we do not speak, nothing else can be judged.
        let newest = fields.number(KEY_VERSION, "version")?;
        let oldest = fields.number(KEY_MIN_VERSION, "minimum version")?;
        let version = u32::try_from(newest).ok().filter(|version| *version >= 1);
        let version = version.ok_or(value("version", newest, "1 to 2^32-1"))?;
        let min_version = u32::try_from(oldest).ok().filter(|oldest| (1..=version).contains(oldest));
        let min_version = min_version.ok_or(value("minimum version", oldest, "1 to the version"))?;
        if min_version > VERSION || version < VERSION {
            return Err(OfferError::Version { oldest, newest }.into());
        }

        let qpn = fields.number(KEY_QPN, "QPN")?;
        let psn = fields.number(KEY_PSN, "PSN")?;
        let path_mtu = fields.number(KEY_PATH_MTU, "path MTU")?;
        let device_part = fields.bytes(KEY_DEVICE_PART, "device part")?;
        let binding = fields.bytes(KEY_BINDING, "binding")?;
        if device_part.len() > MAX_DEVICE_PART {
            return Err(value("device part's length", device_part.len() as u64, "at most 1024").into());
        }
        Ok(Self {
            version,
            min_version,
            qpn: narrow(qpn).and_then(Qpn::new).ok_or(value("QPN", qpn, "2 to 0xFFFFFE"))?,
            psn: narrow(psn).and_then(Psn::new).ok_or(OfferError::Value {
                field: "PSN",
                value: None,
                allowed: "at most 24 bits",
            })?,
            path_mtu: narrow(path_mtu).and_then(PathMtu::from_code).ok_or(value(
                "path MTU code",
                path_mtu,
                "1 to 5",
            ))?,
            responder_resources: depth(fields, KEY_RESPONDER_RESOURCES, "responder resources")?,
            initiator_depth: depth(fields, KEY_INITIATOR_DEPTH, "initiator depth")?,
            terms: Terms {
                max_message_size: ranged(
                    fields,
                    KEY_MAX_MESSAGE_SIZE,
                    "max message size",
                    1..=MAX_MESSAGE,
                    "1 to 2^53-1",
                )?,
                segment_size: ranged(
                    fields,
                    KEY_SEGMENT_SIZE,
                    "segment size",
                    MIN_SEGMENT..=MAX_SEGMENT,
                    "256 to 2^30",
                )?,
                credits: ranged(
                    fields,
                    KEY_CREDITS,
                    "credits",
                    MIN_CREDITS..=u64::from(u16::MAX),
                    "4 to 65535",
                )?,
            },
            device_part: device_part.to_vec(),
            binding: <[u8; BINDING_LENGTH]>::try_from(binding)
                .map_err(|_| value("binding's length", binding.len() as u64, "32"))?,
            keep_alive_interval: interval(fields)?,
        })
    }
}

fn value(field: &'static str, value: u64, allowed: &'static str) -> OfferError {
    OfferError::Value { field, value: Some(value), allowed }
}

fn narrow<T: TryFrom<u64>>(wide: u64) -> Option<T> {
    T::try_from(wide).ok()
}

/// A number within `range`.
fn ranged<T: TryFrom<u64>>(
    fields: &Fields<'_>,
    key: i64,
    name: &'static str,
    range: RangeInclusive<u64>,
    allowed: &'static str,
) -> Result<T, FrameError> {
    let number = fields.number(key, name)?;
    let inside = Some(number).filter(|number| range.contains(number)).and_then(narrow);
    inside.ok_or_else(|| value(name, number, allowed).into())
}

/// A peer that may be silent for as long as it likes would never be found dead: what it may ask for is bounded.
fn interval(fields: &Fields<'_>) -> Result<Option<Duration>, FrameError> {
    if !fields.has(KEY_KEEP_ALIVE_INTERVAL) {
        return Ok(None);
    }
    let range = milliseconds(KeepAlive::MIN_INTERVAL)..=milliseconds(KeepAlive::MAX_INTERVAL);
    let interval =
        ranged(fields, KEY_KEEP_ALIVE_INTERVAL, "keep-alive interval", range, "10 to 60000 milliseconds")?;
    Ok(Some(Duration::from_millis(interval)))
}

/// Rounded up: who states too little is taken for dead.
fn milliseconds(interval: Duration) -> u64 {
    u64::try_from(interval.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn depth(fields: &Fields<'_>, key: i64, name: &'static str) -> Result<u8, FrameError> {
    ranged(fields, key, name, 1..=128, "1 to 128")
}
