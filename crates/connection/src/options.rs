//! What a user can set, with the defaults.

use std::path::PathBuf;
use std::time::Duration;

use secure_rdma_rdma::{Addressing, DeviceWish, Error, ErrorCode, Result};

/// Limits and sizes of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionOptions {
    /// The longest message that this side takes, in bytes: 1 to 2^31. The peer's `send` refuses longer ones by name.
    pub max_message_size: u64,
    /// Bytes of messages that may wait to be posted. Beyond it `send` refuses at once.
    pub send_buffer_size: usize,
    /// Bytes of complete messages that may wait to be read before the peer gets no more credits.
    pub receive_buffer_size: usize,
    /// Receive buffers that are posted for the peer: 4 to 4096. The window of a connection in segments.
    pub credits: u16,
    /// The buffers that all connections of a device share.
    pub pool: PoolOptions,
    /// How long `close()` may take to drain before the connection is destroyed.
    pub close_timeout: Duration,
    /// After how long without any completion an idle queue pair proves its path by a zero-length WRITE; `None` never.
    pub path_probe: Option<Duration>,
    /// How long posted work may go without any completion before the path counts as dead.
    pub path_timeout: Duration,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            max_message_size: 1 << 20,
            send_buffer_size: 16 << 20,
            receive_buffer_size: 1 << 20,
            credits: 16,
            pool: PoolOptions::default(),
            close_timeout: Duration::from_secs(5),
            path_probe: Some(Duration::from_secs(1)),
            path_timeout: Duration::from_millis(3500),
        }
    }
}

impl ConnectionOptions {
    /// Checks every range.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] naming the option and its range.
    pub fn validate(&self) -> Result<()> {
        range("maxMessageSize", self.max_message_size, 1, 1 << 31)?;
        range("sendBufferSize", self.send_buffer_size as u64, 1, 1 << 40)?;
        range("receiveBufferSize", self.receive_buffer_size as u64, 1, 1 << 40)?;
        range("credits", self.credits.into(), 4, 4096)?;
        range("pool.bufferSize", self.pool.buffer_size.into(), 4096, 1 << 20)?;
        range("pool.receiveBuffers", self.pool.receive_buffers.into(), 4, 1 << 20)?;
        range("pool.sendBuffers", self.pool.send_buffers.into(), 1, 1 << 20)?;
        if self.pool.receive_buffers < u32::from(self.credits) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "credits ({}) is more than pool.receiveBuffers ({}): not one connection would fit. Lower credits, or \
                     raise pool.receiveBuffers",
                    self.credits, self.pool.receive_buffers
                ),
            ));
        }
        Ok(())
    }
}

/// Registered buffers, shared by all connections of a device that use the same sizes. They are registered as
/// connections need them, 64 at a time, and kept while one of those connections lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolOptions {
    /// Bytes of a buffer, and so of a segment: 4096 (one packet of the largest path MTU) to 2^20.
    pub buffer_size: u32,
    /// Receive buffers at the most. Each connection reserves `credits` of them.
    pub receive_buffers: u32,
    /// Send buffers at the most. Connections take them for as long as a segment is unacknowledged.
    pub send_buffers: u32,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { buffer_size: 4096, receive_buffers: 16_384, send_buffers: 256 }
    }
}

/// Which device a connection uses, and how it finds its peer there.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Device, port, GID index or address. Empty is automatic.
    pub wish: DeviceWish,
    /// How the path to the peer is found.
    pub addressing: Addressing,
    /// Where the device writes its packets to ([`secure_rdma_rdma::Device::capture`]): those of all its connections,
    /// as long as it is open.
    pub capture_file: Option<PathBuf>,
}

fn range(name: &str, value: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::new(ErrorCode::InvalidArgument, format!("{name} is {value}; it takes {least} to {most}")))
}
