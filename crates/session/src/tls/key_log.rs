//! The key log: every session's secrets in a file, for debugging.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustls::KeyLog;
use secure_rdma_rdma::Result;

use super::material::config_error;

/// Appends lines in NSS key log format, one `write` each.
#[derive(Debug)]
pub(super) struct KeyLogFile {
    file: Mutex<File>,
}

impl KeyLogFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(|cause| {
            config_error(format!(
                "the key log file {} cannot be opened: {cause}. Give a path that this user may write to",
                path.display()
            ))
            .with_syscall("open", cause.raw_os_error().unwrap_or(0))
        })?;
        Ok(Self { file: Mutex::new(file) })
    }
}

impl KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let mut line = format!("{label} ");
        push_hex(&mut line, client_random);
        line.push(' ');
        push_hex(&mut line, secret);
        line.push('\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // Debugging aid: a full disk must not end the connection.
        let _ = file.write_all(line.as_bytes());
    }
}

fn push_hex(line: &mut String, bytes: &[u8]) {
    for byte in bytes {
        line.push_str(&format!("{byte:02x}"));
    }
}
