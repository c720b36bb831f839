//! The frames of the exchange and of the control channel.
//!
//! A frame is a 4-byte big-endian length, 1 to 4096, and a body of that many bytes: the CBOR array `[kind, fields]` in
//! strict encoding, where `fields` is a map with integer keys. Unknown positive keys are ignored; unknown negative keys
//! are *critical* and refused.

use std::fmt;

use minicbor::{Decoder, Encoder};
use secure_rdma_rdma::{Error, ErrorCode};

use crate::cbor;
use crate::offer::{Offer, OfferError};

/// The longest body of a frame, in bytes.
pub const MAX_FRAME: usize = 4096;

/// The longest message of an ERROR frame, in characters.
pub(crate) const MAX_ERROR_MESSAGE: usize = 256;

/// The longest message of a TELL frame, in bytes.
pub const MAX_TOLD: usize = 2048;

const HEADER: usize = 4;

const OFFER: u64 = 1;
const READY: u64 = 2;
const PROVEN: u64 = 3;
const ERROR: u64 = 4;
const KEEP_ALIVE: u64 = 5;
const CLOSE: u64 = 6;
const TELL: u64 = 7;

const ERROR_CODE: i64 = 1;
const ERROR_MESSAGE: i64 = 2;

const TELL_BYTES: i64 = 1;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// One side's parameters.
    Offer(Box<Offer>),
    /// The sender is in RTR: packets may come.
    Ready,
    /// The sender's proof of path is complete.
    Proven,
    /// The sender gives up, and why.
    Error {
        /// A code of [`ErrorCode`], or of a later version.
        code: String,
        /// A sentence, at most 256 characters.
        message: String,
    },
    /// The sender is alive.
    KeepAlive,
    /// The sender has sent its last message and reads no more.
    Close,
    /// A message of the sender's upper layer to its peer's, 1 to 2048 bytes, which the session does not look into.
    Tell(Told),
}

/// What a TELL carries. It may hold keys, so that it never shows in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Told(pub Vec<u8>);

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Told({} bytes)", self.0.len())
    }
}

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The length is 0 or above 4096. Checked before anything is stored.
    Length(u32),
    /// The body is not strict CBOR.
    Encoding {
        /// Where in the body.
        at: usize,
        /// What is wrong there.
        fault: &'static str,
    },
    /// The body is strict CBOR but not `[kind, fields]` with integer keys, or a field has the wrong type.
    Shape(String),
    /// No such kind.
    UnknownKind(u64),
    /// A field that must be understood is not.
    CriticalField(i64),
    /// The offer in it cannot be taken.
    Offer(OfferError),
    /// The stream ended inside a frame.
    Truncated,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(0) => f.write_str("a frame has length 0"),
            Self::Length(length) => write!(f, "a frame has length {length}, above {MAX_FRAME}"),
            Self::Encoding { at, fault } => write!(f, "a frame is not strict CBOR: {fault} (byte {at})"),
            Self::Shape(fault) => write!(f, "a frame is malformed: {fault}"),
            Self::UnknownKind(kind) => write!(f, "a frame has the unknown kind {kind}"),
            Self::CriticalField(key) => write!(f, "a frame has the unknown critical field {key}"),
            Self::Offer(cause) => cause.fmt(f),
            Self::Truncated => f.write_str("the stream ended inside a frame"),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<FrameError> for Error {
    fn from(cause: FrameError) -> Self {
        let code = match &cause {
            FrameError::Offer(OfferError::Version { .. }) => ErrorCode::Version,
            FrameError::Offer(_) => ErrorCode::Offer,
            _ => ErrorCode::Protocol,
        };
        let remedy = if code == ErrorCode::Protocol { ": update the older side" } else { "" };
        Self::new(code, format!("{cause}{remedy}"))
    }
}

impl Frame {
    /// An ERROR frame; code and message are cut to what a frame takes.
    #[must_use]
    pub fn error(code: &str, message: &str) -> Self {
        let code = if is_code(code) { code.to_owned() } else { ErrorCode::Internal.as_str().to_owned() };
        Self::Error { code, message: printable(message).chars().take(MAX_ERROR_MESSAGE).collect() }
    }

    /// The kind's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Offer(_) => "OFFER",
            Self::Ready => "READY",
            Self::Proven => "PROVEN",
            Self::Error { .. } => "ERROR",
            Self::KeepAlive => "KEEP_ALIVE",
            Self::Close => "CLOSE",
            Self::Tell(_) => "TELL",
        }
    }

    /// The bytes of the frame, length included.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Writing to a vector cannot fail; if it did, the empty frame would be refused.
        let body = self.body().unwrap_or_default();
        let length = u32::try_from(body.len()).unwrap_or(0);
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    fn body(&self) -> Result<Vec<u8>, minicbor::encode::Error<std::convert::Infallible>> {
        let mut encoder = Encoder::new(Vec::new());
        encoder.array(2)?;
        match self {
            Self::Offer(offer) => offer.encode(encoder.u64(OFFER)?)?,
            Self::Ready => empty(&mut encoder, READY)?,
            Self::Proven => empty(&mut encoder, PROVEN)?,
            Self::Error { code, message } => {
                encoder.u64(ERROR)?.map(2)?;
                encoder.i64(ERROR_CODE)?.str(code)?.i64(ERROR_MESSAGE)?.str(message)?;
            }
            Self::KeepAlive => empty(&mut encoder, KEEP_ALIVE)?,
            Self::Close => empty(&mut encoder, CLOSE)?,
            Self::Tell(Told(bytes)) => {
                encoder.u64(TELL)?.map(1)?.i64(TELL_BYTES)?.bytes(bytes)?;
            }
        }
        Ok(encoder.into_writer())
    }

    /// Reads a frame's body.
    ///
    /// # Errors
    /// [`FrameError`] with a reason that names the place or the field.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        cbor::check(body)?;
        let mut decoder = Decoder::new(body);
        if decoder.array().ok().flatten() != Some(2) {
            return Err(FrameError::Shape("it is no array of kind and fields".to_owned()));
        }
        let kind = decoder.u64().map_err(|_| FrameError::Shape("its kind is no number".to_owned()))?;
        let rest = body.get(decoder.position()..).unwrap_or_default();
        let known: &[i64] = match kind {
            OFFER => Offer::FIELDS,
            ERROR => &[ERROR_CODE, ERROR_MESSAGE],
            TELL => &[TELL_BYTES],
            READY | PROVEN | KEEP_ALIVE | CLOSE => &[],
            _ => return Err(FrameError::UnknownKind(kind)),
        };
        let fields = Fields::read(rest, known)?;
        Ok(match kind {
            OFFER => Self::Offer(Box::new(Offer::decode(&fields)?)),
            READY => Self::Ready,
            PROVEN => Self::Proven,
            KEEP_ALIVE => Self::KeepAlive,
            CLOSE => Self::Close,
            TELL => {
                let bytes = fields.bytes(TELL_BYTES, "bytes")?;
                if bytes.is_empty() || bytes.len() > MAX_TOLD {
                    return Err(FrameError::Shape(format!(
                        "the message of a TELL has {} bytes; it takes 1 to {MAX_TOLD}",
                        bytes.len()
                    )));
                }
                Self::Tell(Told(bytes.to_vec()))
            }
            _ => {
                let code = fields.text(ERROR_CODE, "code")?;
                let message = fields.text(ERROR_MESSAGE, "message")?;
                if !is_code(code) {
                    return Err(FrameError::Shape("the code of an ERROR is no ERR_RDMA_… code".to_owned()));
                }
                if message.chars().count() > MAX_ERROR_MESSAGE {
                    return Err(FrameError::Shape(
                        "the message of an ERROR has over 256 characters".to_owned(),
                    ));
                }
                Self::Error { code: code.to_owned(), message: printable(message) }
            }
        })
    }
}

fn empty<W: minicbor::encode::Write>(
    encoder: &mut Encoder<W>,
    kind: u64,
) -> Result<(), minicbor::encode::Error<W::Error>> {
    encoder.u64(kind)?.map(0)?.ok()
}

fn is_code(code: &str) -> bool {
    let tail = code.strip_prefix("ERR_RDMA_").unwrap_or_default();
    (1..=55).contains(&tail.len())
        && tail.bytes().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_')
}

/// A text of the peer's that can go to a terminal: no control characters, no change of direction.
pub(crate) fn printable(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if hidden(c) { '\u{FFFD}' } else { c }).collect()
}

/// The fields of one frame: those that are known, each in strict encoding.
pub(crate) struct Fields<'b> {
    entries: Vec<(i64, &'b [u8])>,
}

impl<'b> Fields<'b> {
    fn read(map: &'b [u8], known: &[i64]) -> Result<Self, FrameError> {
        let mut decoder = Decoder::new(map);
        let Ok(Some(count)) = decoder.map() else {
            return Err(FrameError::Shape("its fields are no map".to_owned()));
        };
        let mut entries = Vec::with_capacity(known.len());
        for _ in 0..count {
            let key =
                decoder.i64().map_err(|_| FrameError::Shape("a field's key is no number".to_owned()))?;
            let start = decoder.position();
            decoder.skip().map_err(|_| FrameError::Shape(format!("field {key} cannot be read")))?;
            if known.contains(&key) {
                entries.push((key, map.get(start..decoder.position()).unwrap_or_default()));
            } else if key < 0 {
                return Err(FrameError::CriticalField(key));
            }
        }
        Ok(Self { entries })
    }

    fn get(&self, key: i64, name: &str) -> Result<Decoder<'b>, FrameError> {
        let value = self.entries.iter().find(|(found, _)| *found == key);
        value
            .map(|(_, bytes)| Decoder::new(bytes))
            .ok_or_else(|| FrameError::Shape(format!("the field {key} ({name}) is missing")))
    }

    pub(crate) fn has(&self, key: i64) -> bool {
        self.entries.iter().any(|(found, _)| *found == key)
    }

    pub(crate) fn number(&self, key: i64, name: &str) -> Result<u64, FrameError> {
        self.get(key, name)?
            .u64()
            .map_err(|_| FrameError::Shape(format!("the field {key} ({name}) is no unsigned number")))
    }

    pub(crate) fn bytes(&self, key: i64, name: &str) -> Result<&'b [u8], FrameError> {
        self.get(key, name)?
            .bytes()
            .map_err(|_| FrameError::Shape(format!("the field {key} ({name}) is no byte string")))
    }

    fn text(&self, key: i64, name: &str) -> Result<&'b str, FrameError> {
        self.get(key, name)?
            .str()
            .map_err(|_| FrameError::Shape(format!("the field {key} ({name}) is no text")))
    }
}

/// Cuts a stream of bytes into frames. An error is final: the stream cannot be followed any further.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    failed: Option<FrameError>,
}

impl FrameDecoder {
    /// Takes bytes of the stream. Call [`FrameDecoder::next_frame`] until it gives `None` before the next call, then no
    /// more than one frame and these bytes are stored.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next frame, where there is a whole one.
    ///
    /// # Errors
    /// [`FrameError`]; the same again on every later call.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let next = self.cut();
        if let Err(error) = &next {
            self.failed = Some(error.clone());
            self.buffer = Vec::new();
        }
        next
    }

    /// Whether the stream may end here: not inside a frame.
    ///
    /// # Errors
    /// [`FrameError::Truncated`].
    pub fn end(&self) -> Result<(), FrameError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(FrameError::Truncated) }
    }

    fn cut(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header);
        let end = match usize::try_from(length) {
            Ok(length @ 1..=MAX_FRAME) => HEADER + length,
            _ => return Err(FrameError::Length(length)),
        };
        let Some(body) = self.buffer.get(HEADER..end) else { return Ok(None) };
        let frame = Frame::decode(body)?;
        self.buffer.drain(..end);
        Ok(Some(frame))
    }
}
