//! The one error type, and the list of its codes.

use std::fmt;

/// What every fallible call of the project gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $code:literal,)+) => {
        /// The stable code of an error. New ones may come; none changes its meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode { $($(#[$doc])+ $name,)+ }

        impl ErrorCode {
            /// All codes.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The code as users see it: `ERR_RDMA_…`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }
        }
    };
}

codes! {
    // -- arguments ------------------------------------------------------------------------------------------
    /// An argument of a call is out of range or does not fit the others.
    InvalidArgument = "ERR_RDMA_INVALID_ARGUMENT",
    /// The caller gave up (an `AbortSignal`, a dropped future).
    Aborted = "ERR_RDMA_ABORTED",

    // -- devices --------------------------------------------------------------------------------------------
    /// No device fits the local address of the TLS connection, though there are devices.
    NoMatchingDevice = "ERR_RDMA_NO_MATCHING_DEVICE",
    /// There is no RDMA device at all.
    NoDevice = "ERR_RDMA_NO_DEVICE",
    /// No device has the name that was asked for.
    DeviceNotFound = "ERR_RDMA_DEVICE_NOT_FOUND",
    /// The device cannot carry our connections (iWARP).
    DeviceUnsupported = "ERR_RDMA_DEVICE_UNSUPPORTED",
    /// The device could not be opened.
    DeviceOpen = "ERR_RDMA_DEVICE_OPEN",
    /// The device or its port went away under a connection.
    DeviceLost = "ERR_RDMA_DEVICE_LOST",
    /// libibverbs or librdmacm is not installed or too old.
    Library = "ERR_RDMA_LIBRARY",
    /// RLIMIT_MEMLOCK does not allow the registration.
    Memlock = "ERR_RDMA_MEMLOCK",
    /// The device has no more of something (queue pairs, completion queues, regions).
    Resource = "ERR_RDMA_RESOURCE",
    /// The system has no memory.
    NoMemory = "ERR_RDMA_NO_MEMORY",
    /// The language environment takes no memory of ours (Electron).
    NoExternalBuffers = "ERR_RDMA_NO_EXTERNAL_BUFFERS",
    /// The operating system gave no random bytes.
    Entropy = "ERR_RDMA_ENTROPY",

    // -- queue pairs ----------------------------------------------------------------------------------------
    /// A transition that the table does not have, or with the wrong attributes.
    Transition = "ERR_RDMA_TRANSITION",
    /// The driver refused a transition that the table allows.
    Modify = "ERR_RDMA_MODIFY",
    /// The peer's address did not resolve to a path or a hardware address.
    Unreachable = "ERR_RDMA_UNREACHABLE",
    /// A queue has no room for another work request.
    QueueFull = "ERR_RDMA_QUEUE_FULL",
    /// The driver refused a work request.
    Post = "ERR_RDMA_POST",
    /// A work request failed; `wc_status` says how.
    Work = "ERR_RDMA_WORK",

    // -- TLS ------------------------------------------------------------------------------------------------
    /// TCP could not connect, or listening failed; `errno` says how.
    Tcp = "ERR_RDMA_TCP",
    /// TLS options that contradict each other, or material that cannot be parsed.
    TlsConfig = "ERR_RDMA_TLS_CONFIG",
    /// The peer's certificate does not lead to a trusted authority.
    TlsUntrusted = "ERR_RDMA_TLS_UNTRUSTED",
    /// The peer's certificate is for another name.
    TlsName = "ERR_RDMA_TLS_NAME",
    /// The peer's certificate has expired.
    TlsExpired = "ERR_RDMA_TLS_EXPIRED",
    /// The peer's certificate is not valid yet.
    TlsNotYetValid = "ERR_RDMA_TLS_NOT_YET_VALID",
    /// The peer's certificate is not for this purpose (extended key usage).
    TlsPurpose = "ERR_RDMA_TLS_PURPOSE",
    /// The peer's certificate has been revoked.
    TlsRevoked = "ERR_RDMA_TLS_REVOKED",
    /// The revocation list has expired or does not cover the certificate.
    TlsRevocationUnknown = "ERR_RDMA_TLS_REVOCATION_UNKNOWN",
    /// The peer showed no certificate.
    TlsNoCertificate = "ERR_RDMA_TLS_NO_CERTIFICATE",
    /// The peer's certificate is malformed, badly signed or uses what is not supported.
    TlsBadCertificate = "ERR_RDMA_TLS_BAD_CERTIFICATE",
    /// The peer's certificate has none of the pinned keys.
    TlsPin = "ERR_RDMA_TLS_PIN",
    /// The peer refused with a TLS alert, which the message names.
    TlsAlert = "ERR_RDMA_TLS_ALERT",
    /// The peer speaks no TLS 1.3.
    TlsVersion = "ERR_RDMA_TLS_VERSION",
    /// The peer did not agree on ALPN `secure-rdma/1`.
    TlsAlpn = "ERR_RDMA_TLS_ALPN",
    /// Any other failure of the TLS handshake or of the records after it.
    Tls = "ERR_RDMA_TLS",
    /// `authorize` refused the peer, or failed.
    Unauthorized = "ERR_RDMA_UNAUTHORIZED",

    // -- exchange -------------------------------------------------------------------------------------------
    /// A frame of the exchange is malformed, or came where it has no place.
    Protocol = "ERR_RDMA_PROTOCOL",
    /// The two sides have no protocol version in common.
    Version = "ERR_RDMA_VERSION",
    /// The peer's offer holds a value that cannot be or is not allowed.
    Offer = "ERR_RDMA_OFFER",
    /// The peer refused, and said why.
    PeerRefused = "ERR_RDMA_PEER_REFUSED",
    /// `handshakeTimeout` ran out before the connection was up.
    HandshakeTimeout = "ERR_RDMA_HANDSHAKE_TIMEOUT",
    /// This pending handshake had stalled longest when a newcomer needed its place.
    HandshakeEvicted = "ERR_RDMA_HANDSHAKE_EVICTED",
    /// The peer went away before the connection was up.
    HandshakeClosed = "ERR_RDMA_HANDSHAKE_CLOSED",
    /// RDMA packets do not get through between the two addresses.
    Path = "ERR_RDMA_PATH",

    // -- regions --------------------------------------------------------------------------------------------
    /// The peer has taken its grant back, or is about to.
    RegionRevoked = "ERR_RDMA_REGION_REVOKED",
    /// The region was closed by this side.
    RegionClosed = "ERR_RDMA_REGION_CLOSED",
    /// A range does not lie inside its region.
    RegionBounds = "ERR_RDMA_REGION_BOUNDS",
    /// The peer's grant does not allow this kind of operation.
    RegionAccess = "ERR_RDMA_REGION_ACCESS",
    /// An atomic's 8 bytes do not lie at a multiple of 8.
    RegionAlignment = "ERR_RDMA_REGION_ALIGNMENT",
    /// A name under which nothing can be published, or something is already, or nothing is.
    RegionName = "ERR_RDMA_REGION_NAME",
    /// As much is published on this connection as can be.
    RegionLimit = "ERR_RDMA_REGION_LIMIT",
    /// As many operations wait on this connection as may.
    OperationLimit = "ERR_RDMA_OPERATION_LIMIT",

    // -- connections ----------------------------------------------------------------------------------------
    /// The connection is closed.
    Closed = "ERR_RDMA_CLOSED",
    /// The connection was destroyed by this side.
    Destroyed = "ERR_RDMA_DESTROYED",
    /// The peer is gone: its TLS connection ended or fell silent.
    PeerLost = "ERR_RDMA_PEER_LOST",
    /// The peer broke a rule of the connection (credits, framing).
    PeerViolation = "ERR_RDMA_PEER_VIOLATION",
    /// A message is longer than the peer takes.
    MessageTooLarge = "ERR_RDMA_MESSAGE_TOO_LARGE",
    /// `sendBufferSize` bytes wait to be sent.
    SendBufferFull = "ERR_RDMA_SEND_BUFFER_FULL",
    /// The receive pool has no room for another connection.
    ReceivePoolFull = "ERR_RDMA_RECEIVE_POOL_FULL",
    /// Sending was ended by `end()`.
    Ended = "ERR_RDMA_ENDED",
    /// A stream reads or writes this connection, and nobody else may.
    Locked = "ERR_RDMA_LOCKED",
    /// `close()` did not finish within its time.
    CloseTimeout = "ERR_RDMA_CLOSE_TIMEOUT",
    /// The server is closed.
    ServerClosed = "ERR_RDMA_SERVER_CLOSED",
    /// Something that cannot happen did; please report it.
    Internal = "ERR_RDMA_INTERNAL",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a connection had come when an error happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// TCP.
    Connect,
    /// The TLS handshake.
    Tls,
    /// `authorize`.
    Authorize,
    /// Choosing and opening the device, making the queue pair, RESET→INIT.
    Device,
    /// Offers and readiness over TLS.
    Exchange,
    /// INIT→RTR.
    Rtr,
    /// RTR→RTS.
    Rts,
    /// The proof of path.
    Path,
    /// The connection was up.
    Connected,
    /// The connection was closing.
    Closing,
}

impl Phase {
    /// The phase as users see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Authorize => "authorize",
            Self::Device => "device",
            Self::Exchange => "exchange",
            Self::Rtr => "rtr",
            Self::Rts => "rts",
            Self::Path => "path",
            Self::Connected => "connected",
            Self::Closing => "closing",
        }
    }
}

/// What happened, to what, and what to do about it.
///
/// Cheap to clone, because one cause of death settles many promises.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: ErrorCode,
    message: String,
    syscall: Option<&'static str>,
    errno: Option<i32>,
    wc_status: Option<u32>,
    phase: Option<Phase>,
}

impl Error {
    /// An error with a message that names what happened, to what, and the remedy. No secret may be in it.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            message: message.into(),
            syscall: None,
            errno: None,
            wc_status: None,
            phase: None,
        }))
    }

    /// An [`ErrorCode::Internal`]: something that cannot happen did.
    #[must_use]
    pub fn internal(what: impl fmt::Display) -> Self {
        Self::new(ErrorCode::Internal, format!("{what}: this is a bug of secure-rdma, please report it"))
    }

    /// Adds the system or library call that failed, and its errno.
    #[must_use]
    pub fn with_syscall(mut self, syscall: &'static str, errno: i32) -> Self {
        self.0.syscall = Some(syscall);
        self.0.errno = Some(errno);
        self
    }

    /// Adds the status of the completion that brought it (`enum ibv_wc_status`).
    #[must_use]
    pub fn with_wc_status(mut self, status: crate::WcStatus) -> Self {
        self.0.wc_status = Some(status.0);
        self
    }

    /// Adds how far the connection had come; a phase that is already there stays.
    #[must_use]
    pub fn in_phase(mut self, phase: Phase) -> Self {
        self.0.phase.get_or_insert(phase);
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// The sentence.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The call that failed.
    #[must_use]
    pub fn syscall(&self) -> Option<&'static str> {
        self.0.syscall
    }

    /// The errno of that call.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.0.errno
    }

    /// The status of the completion (`enum ibv_wc_status`).
    #[must_use]
    pub fn wc_status(&self) -> Option<u32> {
        self.0.wc_status
    }

    /// How far the connection had come.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        self.0.phase
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.message)?;
        if let (Some(syscall), Some(errno)) = (self.0.syscall, self.0.errno) {
            write!(f, " [{syscall}, errno {errno}]")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_well_formed_and_no_two_are_equal() {
        let names: std::collections::HashSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        for name in names {
            let word = name.strip_prefix("ERR_RDMA_").unwrap();
            assert!(
                !word.is_empty()
                    && word.bytes().all(|byte| byte.is_ascii_uppercase() || b"_0123456789".contains(&byte))
            );
        }
    }

    #[test]
    fn a_bug_asks_to_be_reported() {
        let error = Error::internal("two ends met");
        assert_eq!(error.code(), ErrorCode::Internal);
        assert!(error.message().starts_with("two ends met") && error.message().ends_with("please report it"));
    }

    #[test]
    fn the_first_phase_stays() {
        let error = Error::new(ErrorCode::Path, "no path").in_phase(Phase::Path).in_phase(Phase::Connected);
        assert_eq!(error.phase(), Some(Phase::Path));
    }
}
