//! One client connection: requests in, responses out, and when it is closed.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};

use http::Version;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::respond::Server;

/// Serves a connection until its client leaves, its response has ended while the host is
/// `draining`, or it waits for a request while a new connection needs its place (`crowded`).
pub(super) async fn serve(
    stream: TcpStream,
    server: Arc<Server>,
    draining: CancellationToken,
    crowded: Arc<Notify>,
) {
    // Each write of the component leaves at once.
    let _ = stream.set_nodelay(true);
    let state = Arc::<State>::default();
    let service = service_fn(|request| {
        let is_old = request.version() == Version::HTTP_10;
        state.is_http_1_0.store(is_old, Ordering::Relaxed);
        let (server, state) = (server.clone(), state.clone());
        async move { Ok::<_, std::convert::Infallible>(server.respond(request, state).await) }
    });
    let stream = Stream {
        stream,
        state: state.clone(),
        resets: false,
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // From the connection's beginning, or from the end of a response, to the end of a head.
        .header_read_timeout(server.request_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut draining = pin!(draining.cancelled_owned());
    let mut evicted = None;
    let mut is_closing = false;
    poll_fn(|cx| {
        loop {
            // An error is the client's: it left, or sent no HTTP.
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let phase = state.phase.load(Ordering::Relaxed);
            if is_closing && phase == REQUESTING {
                // A part of a request, which no instance has seen. hyper would wait for the rest.
                return Poll::Ready(());
            }
            let mut must_close = draining.as_mut().poll(cx).is_ready();
            if phase == RESPONDING {
                evicted = None;
            } else {
                // The one that has waited longest is notified first.
                let wait = || Box::pin(crowded.clone().notified_owned());
                let evicted = evicted.get_or_insert_with(wait);
                must_close |= evicted.as_mut().poll(cx).is_ready();
            }
            if is_closing || !must_close {
                return Poll::Pending;
            }
            is_closing = true;
            connection.as_mut().graceful_shutdown();
        }
    })
    .await;
}

/// Waiting for a request that an instance can have, or for its beginning.
const REQUESTING: u8 = 0;
/// A request is answered.
const RESPONDING: u8 = 1;
/// The response has ended; its last bytes may be on their way.
const RESPONDED: u8 = 2;

/// What a connection is doing.
#[derive(Default)]
pub(super) struct State {
    phase: AtomicU8,
    is_http_1_0: AtomicBool,
}

impl State {
    /// A request's head has come.
    pub(super) fn requesting(&self) {
        self.phase.store(REQUESTING, Ordering::Relaxed);
    }

    /// A request is to be answered; its response ends when the guard is dropped.
    pub(super) fn responding(self: &Arc<Self>) -> Responding {
        self.phase.store(RESPONDING, Ordering::Relaxed);
        Responding(self.clone())
    }
}

/// A request that is being answered.
pub(super) struct Responding(Arc<State>);

impl Drop for Responding {
    fn drop(&mut self) {
        self.0.phase.store(RESPONDED, Ordering::Relaxed);
    }
}

/// The socket. To a client of HTTP/1.0 the end of the connection is the end of the response, so
/// that one which was cut, by whatever, must end in a reset.
struct Stream {
    stream: TcpStream,
    state: Arc<State>,
    resets: bool,
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.state.is_http_1_0.load(Ordering::Relaxed) && !self.resets {
            self.stream.set_zero_linger()?;
            self.resets = true;
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.state.is_http_1_0.load(Ordering::Relaxed) && !self.resets {
            self.stream.set_zero_linger()?;
            self.resets = true;
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// A clean end.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.resets {
            socket2::SockRef::from(&self.stream).set_linger(None)?;
            self.resets = false;
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}
