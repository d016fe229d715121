//! Outbound HTTP: one connection a request, to a host that the manifest allows.
//!
//! A connection is driven by whoever waits for the response: first by the call, then by
//! the reading of the body. So a chunk wakes the component without a task in between, and
//! a body dropped unread takes its connection with it at once: that is the only way for a
//! component to tell the other side to stop.

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

use allowed::AllowedHosts;
use connect::{Driver, Io};

/// Where a request sets no bound of its own, as in wasmtime's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// What the requests of all instances share.
pub(crate) struct Outbound {
    pub(crate) allowed: AllowedHosts,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    output: crate::Output,
    refused: Mutex<HashSet<String>>,
}

impl Outbound {
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

    async fn send(
        &self,
        mut request: http::Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<http::Response<WasiBody>, Error> {
        let uri = std::mem::take(request.uri_mut());
        let scheme = uri.scheme_str().ok_or(Error::HttpRequestUriInvalid)?;
        let host = uri.host().ok_or(Error::HttpRequestUriInvalid)?;
        // Where the entries are broken the log says so; the component hears what Spin says.
        if !self.allow(scheme, host, uri.port_u16()).unwrap_or(false) {
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

        let sent = Arc::new(AtomicBool::new(false));
        let request = request.map(|body| Sending {
            body,
            sent: sent.clone(),
        });
        let (mut sender, mut driver) =
            timeout(options.connect_timeout.unwrap_or(DEFAULT_TIMEOUT), async {
                let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await;
                let stream = stream.map_err(Error::Connect)?;
                stream.set_nodelay(true).map_err(Error::Connect)?;
                let io = if tls {
                    Io::tls(stream, host, self.tls.clone()).await?
                } else {
                    Io::Plain(stream)
                };
                connect::handshake(io).await
            })
            .await
            .map_err(|_| Error::ConnectionTimeout)??;

        let response = timeout(
            options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT),
            driver.drive(sender.send_request(request)),
        )
        .await
        .map_err(|_| Error::ConnectionReadTimeout)?
        .map_err(Error::from)?;

        if !sent.load(Ordering::Acquire) {
            // The other side answers while it is still being sent to: that has to go on
            // whether or not the answer is being read.
            driver = driver.spawn();
        }
        let patience = options.between_bytes_timeout.unwrap_or(DEFAULT_TIMEOUT);
        Ok(response.map(|body| {
            Receiving {
                body,
                driver,
                patience,
                late: Box::pin(sleep(patience)),
            }
            .boxed_unsync()
        }))
    }
}

/// A request's body, which tells when hyper is through with it.
struct Sending {
    body: WasiBody,
    sent: Arc<AtomicBool>,
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
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body with its connection and the bound on the silence between two chunks.
struct Receiving {
    body: Incoming,
    driver: Driver<Sending>,
    patience: Duration,
    late: Pin<Box<Sleep>>,
}

impl Body for Receiving {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        this.driver.poll_io(cx);
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some(late) = Instant::now().checked_add(this.patience) {
                    this.late.as_mut().reset(late);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
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
