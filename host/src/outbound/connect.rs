//! An outbound connection: plain or TLS, and who drives it. Knows nothing of what is allowed.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
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
type Io = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Connects, encrypted if there is a configuration.
pub(super) async fn connect(
    host: &str,
    port: u16,
    tls: Option<Arc<rustls::ClientConfig>>,
) -> Result<Connection, Error> {
    let host = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(Error::Connect)?;
    stream.set_nodelay(true).map_err(Error::Connect)?;
    let Some(config) = tls else {
        return handshake(Either::Left(stream)).await;
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
    let stream = TlsConnector::from(config).connect(name, stream).await;
    handshake(Either::Right(Box::new(stream.map_err(Error::Tls)?))).await
}

/// What a connection reads ahead for a component that does not read: hyper's default is six times that.
const READ_AHEAD: usize = 64 * 1024;

async fn handshake(io: Io) -> Result<Connection, Error> {
    let mut builder = http1::Builder::new();
    let builder = builder.max_buf_size(READ_AHEAD);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
    Ok(Connection {
        sender,
        driver: Driver::Here(Box::new(connection)),
    })
}

/// Who polls a connection. Dropped in any state, it closes the connection.
pub(super) enum Driver<B: Body + 'static> {
    /// The holder of this.
    Here(Box<http1::Connection<TokioIo<Io>, B>>),
    /// A task, which is aborted with this.
    Task { _task: AbortOnDropHandle<()> },
    /// Nobody: it has ended.
    Ended,
}

impl<B> Driver<B>
where
    B: Body<Data = Bytes, Error = Error> + Send + Unpin + 'static,
{
    /// Whether the connection is open, and no task polls it.
    pub(super) fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    /// Lets the connection read and write. The request or the body reports how it ends.
    pub(super) fn poll_io(&mut self, cx: &mut Context<'_>) {
        if let Self::Here(connection) = self
            && Pin::new(connection).poll(cx).is_ready()
        {
            *self = Self::Ended;
        }
    }

    /// Waits for `work`, which needs the connection to be driven.
    pub(super) async fn drive<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            // The work comes first: it has something to send.
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            self.poll_io(cx);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Leaves the connection to a task.
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
