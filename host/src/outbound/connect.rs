//! A connection to the outside: plain or TLS, and who keeps it going.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;
use wasmtime_wasi_http::Error;

use super::idle::Connection;

/// TLS with the roots that browsers trust.
pub(crate) fn tls() -> anyhow::Result<rustls::ClientConfig> {
    let roots = rustls::RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS")?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Plain or encrypted.
pub(super) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    pub(super) async fn tls(
        stream: TcpStream,
        host: &str,
        config: Arc<rustls::ClientConfig>,
    ) -> Result<Self, Error> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| Error::HttpRequestUriInvalid)?;
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await;
        Ok(Self::Tls(Box::new(stream.map_err(Error::Tls)?)))
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What a connection reads ahead for a component that does not read: hyper's own is six times that.
const READ_AHEAD: usize = 64 * 1024;

pub(super) async fn handshake(io: Io) -> Result<Connection, Error> {
    let mut builder = http1::Builder::new();
    let builder = builder.max_buf_size(READ_AHEAD);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
    Ok(Connection {
        sender,
        driver: Driver::Here(Box::new(connection)),
    })
}

/// Who polls a connection. However it is dropped, the connection closes.
pub(super) enum Driver<B: Body + 'static> {
    /// Whoever holds this.
    Here(Box<http1::Connection<TokioIo<Io>, B>>),
    /// A task, which ends with this.
    Task { _task: AbortOnDropHandle<()> },
    /// Nobody: it has ended.
    Ended,
}

impl<B> Driver<B>
where
    B: Body<Data = Bytes, Error = Error> + Send + Unpin + 'static,
{
    /// Whether it is open, and nobody else polls it.
    pub(super) fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    /// Lets the connection read and write. How it ends, the other half will say.
    pub(super) fn poll_io(&mut self, cx: &mut Context<'_>) {
        if let Self::Here(connection) = self
            && Pin::new(connection).poll(cx).is_ready()
        {
            *self = Self::Ended;
        }
    }

    /// Waits for `work`, which needs the connection to be driven.
    pub(super) async fn drive<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            // First the work: it has something to send.
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            self.poll_io(cx);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// From now on a task drives it.
    pub(super) fn spawn(self) -> Self {
        match self {
            Self::Here(connection) => {
                let task = tokio::spawn(async move {
                    let _ = connection.await;
                });
                Self::Task {
                    _task: AbortOnDropHandle::new(task),
                }
            }
            other => other,
        }
    }
}
