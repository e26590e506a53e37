//! A connection whose writes must get on.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// Breaks a connection off when its peer takes nothing of what is written to it for some time.
///
/// A client that does not read fills the socket's buffers; from then on nothing would end its connection, not even the deadline
/// of its request, which only ends the work on the answer. A client that reads slowly is not affected: each byte taken
/// begins the time anew.
#[derive(Debug)]
pub(super) struct Progress<S> {
    stream: S,
    patience: Duration,
    /// When the write that waits is given up.
    limit: Pin<Box<Sleep>>,
    /// A write waits, and `limit` counts.
    waiting: bool,
}

impl<S> Progress<S> {
    /// `patience` is how long a write may wait until the peer takes something.
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, limit: Box::pin(tokio::time::sleep(patience)), waiting: false }
    }

    /// Passes on how a write went, or that it has waited too long.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = false;
            return written;
        }
        if !self.waiting {
            self.waiting = true;
            self.limit.as_mut().reset(Instant::now() + self.patience);
        }
        ready!(self.limit.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client takes nothing of what is written to it",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Progress<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Progress<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    /// A connection over a buffer of eight bytes, and the peer's end.
    fn pair(patience: Duration) -> (Progress<DuplexStream>, DuplexStream) {
        let (near, far) = tokio::io::duplex(8);
        (Progress::new(near, patience), far)
    }

    #[tokio::test]
    async fn a_write_that_nobody_takes_is_given_up() {
        let (mut stream, _far) = pair(Duration::from_millis(20));
        let error = stream.write_all(&[0; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn each_byte_taken_begins_the_time_anew() {
        let (mut stream, mut far) = pair(Duration::from_hours(1));
        let mut context = Context::from_waker(Waker::noop());
        let mut write = |stream: &mut Progress<_>| {
            Pin::new(stream).poll_write(&mut context, &[0; 8]).map(Result::unwrap)
        };
        assert_eq!(write(&mut stream), Poll::Ready(8));
        assert_eq!(write(&mut stream), Poll::Pending);
        let first = stream.limit.deadline();
        assert_eq!(write(&mut stream), Poll::Pending);
        assert_eq!(stream.limit.deadline(), first);
        far.read_u8().await.unwrap();
        assert_eq!(write(&mut stream), Poll::Ready(1));
        assert_eq!(write(&mut stream), Poll::Pending);
        assert!(stream.limit.deadline() > first);
    }
}
