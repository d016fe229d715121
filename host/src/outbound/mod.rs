//! Outbound HTTP, to hosts that the manifest allows.
//!
//! A connection serves one request at a time. It is driven by whoever waits for the response: first
//! by the call, then by the reads of the body. So a chunk wakes the component without a task in
//! between, and dropping a body closes its connection at once, which is a component's only way to
//! tell the server to stop. A connection whose response was read to its end is used again.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep, timeout};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

pub(crate) mod allowed;
mod connect;
mod gathered;
mod idle;
pub(crate) mod tls;

use allowed::AllowedHosts;
use gathered::Gathered;
use idle::{Connection, Endpoint, Idle};

/// For a request that sets no timeout, as in wasmtime's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// What may be connected to, and how connections are encrypted: the same for the whole host.
pub(crate) struct Rules {
    allowed: AllowedHosts,
    tls: Arc<rustls::ClientConfig>,
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
            tls: Arc::new(tls::verifying(tls::public_roots())?),
            output,
            refused: Mutex::default(),
        })
    }

    /// Whether `scheme://host:port` is allowed. The log explains a refusal, once for each address.
    pub(crate) fn allow(
        &self,
        scheme: &str,
        host: &str,
        port: Option<u16>,
    ) -> anyhow::Result<bool> {
        let allow = self.allowed.allow(scheme, host, port)?;
        if !allow {
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            let address = match host.contains(':') && !host.starts_with('[') {
                true => format!("{scheme}://[{host}]{port}"),
                false => format!("{scheme}://{host}{port}"),
            };
            if self.refused.lock().insert(address.clone()) {
                self.output.line(format_args!(
                    "refused a connection to {address}: allowed_outbound_hosts in the manifest does not have it"
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
        // Where the entries are broken the log says so; the component gets Spin's error.
        let allowed = self.rules.allow(scheme, host, uri.port_u16());
        if !allowed.unwrap_or(false) {
            return Err(Error::HttpRequestDenied);
        }
        let tls = scheme == "https";
        let endpoint = Endpoint {
            tls,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        };
        // Only a request to a proxy has the address in its request line.
        if let Some(path) = uri.into_parts().path_and_query {
            *request.uri_mut() = path.into();
        }

        let sent = Arc::new(AtomicBool::new(false));
        let (parts, body) = request.into_parts();
        let body = Sending::begin(body, sent.clone()).await;
        let mut request = http::Request::from_parts(parts, body);
        let first_byte = options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT);
        let (response, mut connection) = loop {
            let (mut connection, is_new) = match self.idle.take(&endpoint) {
                Some(connection) => (connection, false),
                None => (self.connect(&endpoint, &options).await?, true),
            };
            let sending = connection.sender.try_send_request(request);
            let response = timeout(first_byte, connection.driver.drive(sending))
                .await
                .map_err(|_| Error::ConnectionReadTimeout)?;
            match response {
                Ok(response) => break (response, connection),
                Err(mut error) => match error.take_message() {
                    // The connection was closed before it took the request.
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(error.into_error().into()),
                },
            }
        };

        if !sent.load(Ordering::Acquire) {
            // The server responds while the request is still being sent, which has to go on
            // whether or not the response is being read.
            connection.driver = connection.driver.spawn();
        }
        let between_bytes = options.between_bytes_timeout.unwrap_or(DEFAULT_TIMEOUT);
        let idle = self.idle.clone();
        Ok(response.map(|body| {
            let receiving = Receiving {
                body,
                connection: Some(connection),
                endpoint,
                idle,
            };
            Bounded {
                body: Gathered::new(receiving),
                between_bytes,
                timer: Box::pin(sleep(between_bytes)),
            }
            .boxed_unsync()
        }))
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        options: &RequestOptions,
    ) -> Result<Connection, Error> {
        let limit = options.connect_timeout.unwrap_or(DEFAULT_TIMEOUT);
        let tls = endpoint.tls.then(|| self.rules.tls.clone());
        timeout(limit, connect::connect(&endpoint.host, endpoint.port, tls))
            .await
            .map_err(|_| Error::ConnectionTimeout)?
    }
}

/// How long the head of a request waits for the start of its body, to be sent in one segment.
const HEAD_PATIENCE: Duration = Duration::from_millis(5);

/// The body of a request, which records when hyper has dropped it.
struct Sending {
    /// What was read of it already.
    first: Option<Result<Frame<Bytes>, Error>>,
    body: WasiBody,
    sent: Arc<AtomicBool>,
}

impl Sending {
    /// Waits a moment for the start of the body.
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
        let first = first.and_then(Frame::data_ref).map_or(0, Bytes::len);
        self.body.size_hint() + SizeHint::with_exact(first as u64)
    }
}

/// The body of a response with its connection.
struct Receiving {
    body: Incoming,
    /// `None` once the body has ended.
    connection: Option<Connection>,
    endpoint: Endpoint,
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
            this.idle.put(&this.endpoint, connection);
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

/// A body with a timeout between two of its frames.
struct Bounded<B> {
    body: B,
    between_bytes: Duration,
    timer: Pin<Box<Sleep>>,
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
                if let Some(deadline) = Instant::now().checked_add(this.between_bytes) {
                    this.timer.as_mut().reset(deadline);
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                ready!(this.timer.as_mut().poll(cx));
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

/// The outbound side of `wasi:http`.
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
            // The body holds the connection: there is nothing left to wait for.
            Ok((response, Box::new(async { Ok(()) }) as Processing))
        })
    }
}
