//! Frames over a TLS stream. Everything is in the struct, so that a dropped wait loses nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frame::{Frame, FrameDecoder, FrameError};

/// What may wait to be written: enough for every frame that we send on our own, far below what a peer that reads nothing
/// could make us store.
const MAX_OUT: usize = 64 * 1024;

/// How much is read at a time. More than one frame and this is never stored.
const READ: usize = 4096;

/// What came.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A frame.
    Frame(Frame),
    /// The peer has ended its direction with a TLS close_notify.
    End,
}

/// Why nothing more will come.
#[derive(Debug)]
pub(crate) enum Broken {
    /// TCP or TLS.
    Io(io::Error),
    /// What came is no frame.
    Frame(FrameError),
}

/// A TLS stream that carries frames.
pub(crate) struct Channel<S> {
    stream: S,
    decoder: FrameDecoder,
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
    /// Writing failed; reading may still bring the reason.
    write_error: Option<io::Error>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    pub(crate) fn new(stream: S) -> Self {
        let (out, decoder) = (Vec::new(), FrameDecoder::default());
        Self { stream, decoder, out, written: 0, unflushed: false, write_error: None }
    }

    /// Queues a frame; `false` when the peer takes nothing and there is no more room.
    pub(crate) fn queue(&mut self, frame: &Frame) -> bool {
        if self.write_error.is_some() {
            return true;
        }
        let bytes = frame.encode();
        if self.pending() + bytes.len() > MAX_OUT {
            return false;
        }
        self.out.drain(..self.written);
        self.written = 0;
        self.out.extend_from_slice(&bytes);
        true
    }

    /// Bytes that wait to be written.
    pub(crate) fn pending(&self) -> usize {
        self.out.len() - self.written
    }

    /// Writes what is queued as far as the network takes it. Ready when all is written, or writing has failed.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.poll_write_out(cx)) {
            Ok(()) => {}
            Err(error) => {
                self.out = Vec::new();
                self.written = 0;
                self.unflushed = false;
                self.write_error.get_or_insert(error);
            }
        }
        Poll::Ready(())
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.pending() > 0 {
            let rest = self.out.get(self.written..).unwrap_or_default();
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our direction: TLS close_notify, then FIN.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_flush(cx));
        // Whoever shuts down has nothing more to say: how it fails does not matter.
        let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        Poll::Ready(())
    }

    /// Writes what can be written, and gives the next frame.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, Broken>> {
        let _ = self.poll_flush(cx);
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Poll::Ready(Ok(Incoming::Frame(frame))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(Broken::Frame(error))),
            }
            let mut bytes = [0; READ];
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    return Poll::Ready(self.decoder.end().map(|()| Incoming::End).map_err(Broken::Frame));
                }
                Poll::Ready(Ok(())) => self.decoder.push(buffer.filled()),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Io(error))),
                Poll::Pending => {
                    return match self.write_error.take() {
                        Some(error) => Poll::Ready(Err(Broken::Io(error))),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }

    /// Reads and forgets until the peer's end, so that closing does not cut off what we said last.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, budget: &mut usize) -> Poll<()> {
        loop {
            let mut bytes = [0; READ];
            let mut buffer = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if buffer.filled().is_empty() => return Poll::Ready(()),
                Ok(()) => *budget = budget.saturating_sub(buffer.filled().len()),
                Err(_) => return Poll::Ready(()),
            }
            if *budget == 0 {
                return Poll::Ready(());
            }
        }
    }
}
