//! Connections of the API: bounded in number, and ended when nothing comes over them.
//!
//! Whoever reaches the port may open connections and be silent. More than [`MAX_CONNECTIONS`] wait in the kernel's queue;
//! one that is silent makes room after a while. Long polls and downloads are not touched: a long poll ends before
//! [`IDLE`], and a download is not silent.

use std::future::Future;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, Instant, Sleep};

/// Connections at the same time.
pub const MAX_CONNECTIONS: usize = 512;
/// The whole head of the first request must have come by then.
pub const HEAD: Duration = Duration::from_secs(30);
/// Longest silence in both directions; more than the longest wait of a request.
pub const IDLE: Duration = Duration::from_secs(180);
/// Pause after a failed accept (file descriptors used up, for instance).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens with the bounds.
pub struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    head: Duration,
    idle: Duration,
}

impl Bounded {
    pub fn new(listener: TcpListener) -> Bounded {
        Bounded::with(listener, MAX_CONNECTIONS, HEAD, IDLE)
    }

    fn with(listener: TcpListener, max: usize, head: Duration, idle: Duration) -> Bounded {
        Bounded { listener, places: Arc::new(Semaphore::new(max)), head, idle }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // The place comes before the accept: a flood waits in the kernel's queue, not in memory. It is never closed.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                std::future::pending::<()>().await;
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let timer = Box::pin(sleep(self.head));
                    let (idle, tail) = (self.idle, Some([0; 3]));
                    return (Connection { stream, timer, idle, tail, _place: place }, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an API connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its clock.
pub struct Connection {
    stream: TcpStream,
    timer: Pin<Box<Sleep>>,
    idle: Duration,
    /// The last bytes of the first request's head; `None`: it is whole, and silence counts.
    tail: Option<[u8; 3]>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Bytes went over it.
    fn moved(&mut self) {
        if self.tail.is_none() {
            self.timer.as_mut().reset(Instant::now() + self.idle);
        }
    }

    /// Looks for the empty line that ends the first head.
    fn look(&mut self, new: &[u8]) {
        let Some(tail) = self.tail else { return };
        let seen = [&tail, new].concat();
        self.tail = match seen.windows(4).any(|w| w == b"\r\n\r\n") {
            true => None,
            false => seen.last_chunk().copied(),
        };
    }

    /// The outcome of an operation, with the clock looked at.
    fn timed<T>(&mut self, cx: &mut Context<'_>, p: Poll<Result<T>>) -> Poll<Result<T>> {
        match p {
            Poll::Pending => self
                .timer
                .as_mut()
                .poll(cx)
                .map(|()| Err(Error::new(ErrorKind::TimedOut, "the connection is silent"))),
            done => {
                self.moved();
                done
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buf.filled().len();
        let p = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.look(buf.filled().get(before..).unwrap_or_default());
        self.timed(cx, p)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize>> {
        let p = Pin::new(&mut self.stream).poll_write(cx, data);
        self.timed(cx, p)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let p = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.timed(cx, p)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    /// A server whose only request takes `takes`.
    async fn server(max: usize, head: u64, idle: u64, takes: u64) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let ms = Duration::from_millis;
        let listener = Bounded::with(listener, max, ms(head), ms(idle));
        let answer = move || async move {
            sleep(ms(takes)).await;
            "done"
        };
        let router = axum::Router::new().route("/", get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        at
    }

    /// What comes until the server ends the connection.
    async fn all(s: &mut TcpStream) -> String {
        let mut out = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), s.read_to_end(&mut out)).await;
        read.expect("the connection is not ended").ok();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn connections_that_send_no_head_end_and_make_room() {
        let at = server(2, 300, 60_000, 0).await;
        let mut silent = TcpStream::connect(at).await.unwrap();
        let mut half = TcpStream::connect(at).await.unwrap();
        half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.unwrap();
        let mut third = TcpStream::connect(at).await.unwrap();
        third.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(all(&mut third).await.ends_with("done"), "it had to wait for a place");
        assert_eq!(all(&mut silent).await + &all(&mut half).await, "");
    }

    #[tokio::test]
    async fn a_request_may_take_longer_than_a_head_and_an_idle_connection_ends() {
        let at = server(2, 200, 1500, 800).await;
        let mut s = TcpStream::connect(at).await.unwrap();
        s.write_all(ASK).await.unwrap();
        let begin = Instant::now();
        assert!(all(&mut s).await.ends_with("done"));
        assert!(begin.elapsed() > Duration::from_millis(1500), "{:?}", begin.elapsed());
    }
}
