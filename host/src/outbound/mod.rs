//! Outbound HTTP, to hosts that the manifest allows.
//!
//! A connection serves one request at a time. It is driven by whoever waits for the response: first by the call, then by
//! the reading of the body. So a chunk wakes the component without a task in between, and
//! a body dropped unread takes its connection with it at once: that is the only way for a
//! component to tell the other side to stop. One whose response was read to its end is used again.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

pub(crate) mod allowed;
mod connect;
mod gathered;
mod idle;

use allowed::AllowedHosts;
use connect::Io;
use gathered::Gathered;
use idle::{Connection, Idle, Place};

/// Where a request sets no bound of its own, as in wasmtime's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// Where connections may lead, and how they are encrypted: the same for the whole host.
pub(crate) struct Rules {
    allowed: AllowedHosts,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    output: crate::Output,
    refused: Mutex<HashSet<String>>,
}

impl Rules {
    pub(crate) fn new(allowed: AllowedHosts, output: crate::Output) -> anyhow::Result<Self> {
        if let Some(broken) = allowed.broken() {
            output.line(format_args!(
                "every outbound call will be refused: {broken}"
            ));
        }
        Ok(Self {
            allowed,
            tls: Arc::new(connect::tls()?),
            output,
            refused: Mutex::default(),
        })
    }

    /// Whether `scheme://host:port` is allowed. A refusal is explained, once a place.
    pub(crate) fn allow(
        &self,
        scheme: &str,
        host: &str,
        port: Option<u16>,
    ) -> anyhow::Result<bool> {
        let allow = self.allowed.allow(scheme, host, port)?;
        if !allow {
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            let place = format!("{scheme}://{host}{port}");
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            if refused.insert(place.clone()) {
                self.output.line(format_args!(
                    "refused a connection to {place}: allowed_outbound_hosts in the manifest does not have it"
                ));
            }
        }
        Ok(allow)
    }
}

/// What the requests of all instances on a thread share.
pub(crate) struct Outbound {
    rules: Arc<Rules>,
    idle: Arc<Idle>,
}

impl Outbound {
    pub(crate) fn new(rules: Arc<Rules>) -> Self {
        Self {
            rules,
            idle: Arc::default(),
        }
    }

    async fn send(
        &self,
        mut request: http::Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<http::Response<WasiBody>, Error> {
        let uri = std::mem::take(request.uri_mut());
        let scheme = uri.scheme_str().ok_or(Error::HttpRequestUriInvalid)?;
        let host = uri.host().ok_or(Error::HttpRequestUriInvalid)?;
        // Where the entries are broken the log says so; the component hears what Spin says.
        let allowed = self.rules.allow(scheme, host, uri.port_u16());
        if !allowed.unwrap_or(false) {
            return Err(Error::HttpRequestDenied);
        }
        let tls = scheme == "https";
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        // The address goes into the request line only where a proxy is addressed.
        *request.uri_mut() = uri
            .path_and_query()
            .map_or(Ok(http::Uri::from_static("/")), |path| {
                http::Uri::builder().path_and_query(path.clone()).build()
            })
            .map_err(|_| Error::HttpRequestUriInvalid)?;

        let place = Place {
            tls,
            host: host.to_owned(),
            port,
        };

        let sent = Arc::new(AtomicBool::new(false));
        let (parts, body) = request.into_parts();
        let body = Sending::begin(body, sent.clone()).await;
        let mut request = http::Request::from_parts(parts, body);
        let first_byte = options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT);
        let (response, mut connection) = loop {
            let (mut connection, is_new) = match self.idle.take(&place) {
                Some(connection) => (connection, false),
                None => (self.connect(&place, &options).await?, true),
            };
            let sending = connection.sender.try_send_request(request);
            let response = timeout(first_byte, connection.driver.drive(sending))
                .await
                .map_err(|_| Error::ConnectionReadTimeout)?;
            match response {
                Ok(response) => break (response, connection),
                Err(mut error) => match error.take_message() {
                    // It was closed before it took the request.
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(error.into_error().into()),
                },
            }
        };

        if !sent.load(Ordering::Acquire) {
            // The other side answers while it is still being sent to: that has to go on
            // whether or not the answer is being read.
            connection.driver = connection.driver.spawn();
        }
        let patience = options.between_bytes_timeout.unwrap_or(DEFAULT_TIMEOUT);
        let idle = self.idle.clone();
        Ok(response.map(|body| {
            let incoming = Receiving {
                body,
                connection: Some(connection),
                place,
                idle,
            };
            Bounded {
                body: Gathered::new(incoming),
                patience,
                late: Box::pin(sleep(patience)),
            }
            .boxed_unsync()
        }))
    }
}

impl Outbound {
    async fn connect(&self, place: &Place, options: &RequestOptions) -> Result<Connection, Error> {
        let limit = options.connect_timeout.unwrap_or(DEFAULT_TIMEOUT);
        let connecting = async {
            let host = place.host.trim_matches(['[', ']']);
            let stream = TcpStream::connect((host, place.port)).await;
            let stream = stream.map_err(Error::Connect)?;
            stream.set_nodelay(true).map_err(Error::Connect)?;
            let io = if place.tls {
                Io::tls(stream, &place.host, self.rules.tls.clone()).await?
            } else {
                Io::Plain(stream)
            };
            connect::handshake(io).await
        };
        timeout(limit, connecting)
            .await
            .map_err(|_| Error::ConnectionTimeout)?
    }
}

/// How long a request's head waits for the first of its body, to leave in one segment with it.
const HEAD_PATIENCE: Duration = Duration::from_millis(5);

/// A request's body, which tells when hyper is through with it.
struct Sending {
    /// What has come of it already.
    first: Option<Result<Frame<Bytes>, Error>>,
    body: WasiBody,
    sent: Arc<AtomicBool>,
}

impl Sending {
    /// Waits a moment for the body to begin.
    async fn begin(mut body: WasiBody, sent: Arc<AtomicBool>) -> Self {
        let first = match body.is_end_stream() {
            true => None,
            false => timeout(HEAD_PATIENCE, body.frame()).await.ok().flatten(),
        };
        Self { first, body, sent }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.sent.store(true, Ordering::Release);
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().and_then(|first| first.as_ref().ok());
        let first = first.and_then(Frame::data_ref).map_or(0, Bytes::len) as u64;
        let rest = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(first));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(first));
        }
        hint
    }
}

/// A response's body with its connection.
struct Receiving {
    body: Incoming,
    /// `None` once the body has come to its end.
    connection: Option<Connection>,
    place: Place,
    idle: Arc<Idle>,
}

impl Body for Receiving {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if let Some(connection) = &mut this.connection {
            connection.driver.poll_io(cx);
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if frame.is_none()
            && let Some(connection) = this.connection.take()
        {
            this.idle.put(&this.place, connection);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body with a bound on the silence between two of its frames.
struct Bounded<B> {
    body: B,
    patience: Duration,
    late: Pin<Box<Sleep>>,
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Body for Bounded<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some(late) = Instant::now().checked_add(this.patience) {
                    this.late.as_mut().reset(late);
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                ready!(this.late.as_mut().poll(cx));
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The outbound side as `wasi:http` asks for it.
pub(crate) struct Hooks(pub(crate) Arc<Outbound>);

type Processing = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Processing,
    ) -> Box<dyn Future<Output = Result<(http::Response<WasiBody>, Processing), Error>> + Send>
    {
        let outbound = self.0.clone();
        Box::new(async move {
            let response = outbound.send(request, options.unwrap_or_default()).await?;
            // The connection goes with the body: there is nothing left to wait for.
            Ok((response, Box::new(async { Ok(()) }) as Processing))
        })
    }
}
