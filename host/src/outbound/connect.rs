//! An outbound connection: plain or TLS, and who drives it. Knows nothing of what is allowed.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tokio_util::task::AbortOnDropHandle;
use wasmtime_wasi_http::Error;

use super::idle::Connection;

/// Plain or encrypted.
type Io = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Connects, encrypted if there is a configuration.
pub(super) async fn connect(
    host: &str,
    port: u16,
    tls: Option<Arc<rustls::ClientConfig>>,
) -> Result<Connection, Error> {
    let host = host.trim_matches(['[', ']']);
    let addresses = lookup_host((host, port)).await.map_err(Error::Connect)?;
    let stream = connect_to_any(addresses).await.map_err(Error::Connect)?;
    stream.set_nodelay(true).map_err(Error::Connect)?;
    let Some(config) = tls else {
        return handshake(Either::Left(stream)).await;
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
    let stream = TlsConnector::from(config).connect(name, stream).await;
    handshake(Either::Right(Box::new(stream.map_err(tls_failed)?))).await
}

/// How long an address may take before the next one of its name is tried too.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Connects to the first address of a name that answers: one that does not costs a moment, not the
/// whole time limit.
async fn connect_to_any(mut addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut trying = FuturesUnordered::new();
    let mut last = None;
    loop {
        let next = addresses.next();
        let is_last = next.is_none();
        trying.extend(next.map(TcpStream::connect));
        let tried = async {
            match is_last {
                true => Some(trying.next().await),
                false => timeout(NEXT_ADDRESS, trying.next()).await.ok(),
            }
        };
        match tried.await {
            Some(Some(Ok(stream))) => return Ok(stream),
            Some(Some(Err(error))) => last = Some(error),
            Some(None) => return Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into())),
            None => {}
        }
    }
}

/// A certificate that is not trusted has an error of its own.
fn tls_failed(error: io::Error) -> Error {
    let cause = error.get_ref().and_then(|error| error.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
        Some(rustls::Error::AlertReceived(alert)) => Error::TlsAlertReceived {
            alert_id: Some((*alert).into()),
            alert_message: Some(format!("{alert:?}")),
        },
        _ => Error::TlsProtocolError,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket};

    /// A listener that takes no more connections, and those that fill it.
    async fn silent() -> io::Result<(TcpListener, Vec<TcpStream>)> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        let listener = socket.listen(1)?;
        let mut waiting = Vec::new();
        while let Ok(connected) = timeout(
            Duration::from_millis(200),
            TcpStream::connect(listener.local_addr()?),
        )
        .await
        {
            waiting.push(connected?);
        }
        Ok((listener, waiting))
    }

    #[tokio::test]
    async fn an_address_that_is_silent_or_refuses_costs_a_moment() -> io::Result<()> {
        let (silent, _waiting) = silent().await?;
        let refuses = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let server = TcpListener::bind("127.0.0.1:0").await?;
        let addresses = [silent.local_addr()?, refuses, server.local_addr()?];
        let connecting = connect_to_any(addresses.into_iter());
        let stream = timeout(Duration::from_secs(10), connecting).await??;
        assert_eq!(stream.peer_addr()?, server.local_addr()?);

        let refused = connect_to_any([refuses, refuses].into_iter()).await;
        assert_eq!(
            refused.map_err(|error| error.kind()).err(),
            Some(io::ErrorKind::ConnectionRefused)
        );
        Ok(())
    }
}
