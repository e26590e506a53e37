//! Bodies that nobody has read, when their requests are answered.
//!
//! A refusal may be known before the request's body has been read. A small body is on its way then, or here: it is taken and dropped
//! before the refusal is sent, or the connection would be lost that clients mean to use again. Behind a large one the connection
//! is closed, but only when the refusal has had the time to arrive: closed at once, it would be reset by what is still coming,
//! and clients that send on until then would be told of a broken connection and not why they were refused.

use std::{
    future::{Future, poll_fn},
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, timeout},
};

/// How long what nobody wants is taken: some round trips, after which the answer has arrived.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Bodies up to so many bytes are taken before their refusal is sent.
const SMALL: u64 = 64 << 10;
/// How long such a body may take: it was sent with its head, or right behind it.
const MOMENT: Duration = Duration::from_millis(200);
/// Bytes that are dropped at once.
const HANDFUL: usize = 16 << 10;

/// Whether the last request of a connection has a body that was not read to its end. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    /// The body, whose end is noted when it is read, and what is left of it when it is given up before.
    pub(super) fn watch<B: Body>(&self, body: B) -> (Watched<B>, Rest<B>) {
        self.0.store(!body.is_end_stream(), Ordering::Relaxed);
        let left = Arc::default();
        let rest = Rest { left: Arc::clone(&left), unread: self.clone() };
        (Watched { body: Some(body), left, unread: self.clone() }, rest)
    }

    fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether there is something of it that nobody has read, behind which the connection is closed.
    pub(super) fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A body whose end is noted.
#[derive(Debug)]
pub(super) struct Watched<B> {
    /// Taken in `drop`.
    body: Option<B>,
    left: Arc<Mutex<Option<B>>>,
    unread: Unread,
}

impl<B> Drop for Watched<B> {
    fn drop(&mut self) {
        if self.unread.is_so() {
            *self.left.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
        }
    }
}

/// What is left of a body that was given up before its end.
#[derive(Debug)]
pub(super) struct Rest<B> {
    left: Arc<Mutex<Option<B>>>,
    unread: Unread,
}

impl<B: Body<Data = Bytes> + Unpin> Rest<B> {
    /// Takes it and drops it, where it is small and comes at once.
    pub(super) async fn take(self) {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut body) = left else { return };
        let mut most = SMALL;
        let taken = poll_fn(|context| {
            loop {
                if body.size_hint().lower() > most {
                    return Poll::Ready(());
                }
                match ready!(Pin::new(&mut body).poll_frame(context)) {
                    Some(Ok(frame)) => {
                        let bytes = frame.data_ref().map_or(0, Bytes::len);
                        // In chunks it does not say how much is to come.
                        let Some(left) = most.checked_sub(bytes as u64) else {
                            return Poll::Ready(());
                        };
                        most = left;
                    }
                    Some(Err(_)) => return Poll::Ready(()),
                    None => {
                        self.unread.end();
                        return Poll::Ready(());
                    }
                }
            }
        });
        // Where it does not come the connection is closed, as behind a large one.
        drop(timeout(MOMENT, taken).await);
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(context));
        if frame.is_none() || body.is_end_stream() {
            self.unread.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// The connection itself.
#[derive(Debug)]
pub(super) struct Linger<S> {
    stream: S,
    unread: Unread,
    /// Until when what comes is taken; from when on is known once the answer is out.
    limit: Option<Pin<Box<Sleep>>>,
}

impl<S> Linger<S> {
    /// `unread` watches the bodies that come over it.
    pub(super) fn new(stream: S, unread: Unread) -> Self {
        Self { stream, unread, limit: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// The peer is told that no more will come, and is read until it has no more either.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, unread, limit } = &mut *self;
        if limit.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
        }
        if !unread.is_so() {
            return Poll::Ready(Ok(()));
        }
        let limit = limit
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + PATIENCE)));
        let mut handful = [MaybeUninit::uninit(); HANDFUL];
        while limit.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::uninit(&mut handful);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // It has closed its side, or is gone.
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body as Whole, HttpBody};
    use futures_util::{StreamExt, stream};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    /// A connection over which a request with this body came, and the peer's end.
    fn pair(body: &'static str) -> (Linger<DuplexStream>, DuplexStream) {
        let (near, far) = tokio::io::duplex(8);
        let unread = Unread::default();
        drop(unread.watch(Whole::from(body)));
        (Linger::new(near, unread), far)
    }

    #[tokio::test]
    async fn what_still_comes_is_taken_after_the_answer() {
        let (mut near, mut far) = pair("{}");
        let peer = tokio::spawn(async move {
            // More than fits between the two.
            far.write_all(&vec![0; 100_000]).await.unwrap();
            let mut answer = String::new();
            far.read_to_string(&mut answer).await.unwrap();
            answer
        });
        near.write_all(b"no").await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(peer.await.unwrap(), "no");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_taken_for_a_while_only() {
        let (mut near, _silent) = pair("{}");
        let begin = Instant::now();
        near.shutdown().await.unwrap();
        assert!(begin.elapsed() >= PATIENCE);
        let (mut near, mut far) = pair("{}");
        let endless = tokio::spawn(async move {
            for _ in 0..100 {
                far.write_all(&[0; 8]).await.unwrap();
            }
            tokio::time::advance(PATIENCE).await;
            while far.write_all(&[0; 8]).await.is_ok() {}
        });
        near.shutdown().await.unwrap();
        drop(near);
        endless.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_body_is_closed_at_once() {
        let (mut near, _silent) = pair("");
        let begin = Instant::now();
        near.shutdown().await.unwrap();
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn bodies_are_unread_until_their_end() {
        let unread = Unread::default();
        drop(unread.watch(Whole::empty()));
        assert!(!unread.is_so());
        let pieces = stream::iter(["a", "b"].map(Ok::<_, io::Error>));
        let (body, _) = unread.watch(Whole::from_stream(pieces));
        let body = Whole::new(body);
        assert!(unread.is_so());
        let mut data = body.into_data_stream();
        data.next().await.unwrap().unwrap();
        data.next().await.unwrap().unwrap();
        assert!(unread.is_so());
        assert!(data.next().await.is_none());
        assert!(!unread.is_so());
        let (body, _) = unread.watch(Whole::from("ab"));
        assert_eq!((unread.is_so(), body.size_hint().exact()), (true, Some(2)));
        drop(body);
        assert!(unread.is_so());
    }

    /// Whether a body of such pieces is still unread when what is left of it was to be taken.
    async fn left(pieces: Vec<Result<Bytes, io::Error>>, then: Option<Duration>) -> bool {
        let unread = Unread::default();
        let late = stream::once(async move {
            match then {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
            Ok(Bytes::from("the end"))
        });
        let body = Whole::from_stream(stream::iter(pieces).chain(late));
        let (body, rest) = unread.watch(body);
        drop(body);
        rest.take().await;
        unread.is_so()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_small_body_is_taken() {
        let piece = |bytes: usize| Ok(Bytes::from(vec![0; bytes]));
        assert!(!left(vec![], Some(Duration::ZERO)).await);
        assert!(!left(vec![piece(1), piece(60_000)], Some(MOMENT / 2)).await);
        let begin = Instant::now();
        assert!(left(vec![piece(40_000), piece(40_000)], None).await, "it is large");
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert!(left(vec![piece(1)], None).await, "it does not come");
        assert_eq!(begin.elapsed(), MOMENT);
        assert!(left(vec![Err(io::ErrorKind::BrokenPipe.into())], None).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_says_it_is_large_is_not_waited_for() {
        let unread = Unread::default();
        let (body, rest) = unread.watch(Whole::from(vec![0; 70_000]));
        drop(body);
        rest.take().await;
        assert!(unread.is_so());
        let (body, rest) = unread.watch(Whole::from("read"));
        drop(body);
        rest.take().await;
        assert!(!unread.is_so());
    }
}
