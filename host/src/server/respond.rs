//! A request's way to an instance, and the host's own refusals: JSON with an `error` that says what
//! to do and a `code`.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::handler::{self, InstantiationError, ProxyHandler};

use super::authority::{self, AllowedHosts};
use super::body::{NotRead, discard, read_beginning};
use super::connection::State;
use super::instances::Instances;
use super::limits::{Limited, Meter, ResponseLimits};
use super::requests::{Outcome, PendingRequest, ResponseBody};

/// How long a request waits for room in the pool of instances, in pieces.
const INSTANTIATION_PAUSE: Duration = Duration::from_millis(20);
const INSTANTIATION_TRIES: u32 = 50;

type Body = UnsyncBoxBody<Bytes, Error>;

/// Answers the requests of one worker's connections.
pub(super) struct Server {
    pub(super) handler: ProxyHandler<Instances>,
    pub(super) address: SocketAddr,
    pub(super) allowed_hosts: AllowedHosts,
    pub(super) request_timeout: Duration,
    pub(super) limits: ResponseLimits,
}

impl Server {
    pub(super) async fn respond(
        &self,
        request: Request<Incoming>,
        connection: Arc<State>,
    ) -> Response<Body> {
        connection.requesting();
        let request = match self.accept(request).await {
            Ok(request) => request,
            Err(refusal) => {
                // From here on the connection waits until the refusal is sent.
                drop(connection.responding());
                return refusal.response();
            }
        };
        let responding = connection.responding();
        let host = self.handler.state();
        let pending = host.requests.arrive();
        let state = pending.response.clone();
        // Dropping this (the client leaves) does not stop the component: its response is discarded,
        // and its writes fail.
        let mut meter = Meter::start(self.limits, host.services.output.clone());
        let handled = tokio::select! {
            handled = self.handle(pending, request) => handled,
            () = meter.too_long() => Err(Failed::too_long()),
        };
        match handled {
            Ok(response) => response.map(|body| {
                let body = ResponseBody {
                    body,
                    state,
                    _responding: responding,
                };
                Limited { body, meter }.boxed_unsync()
            }),
            Err(failed) => {
                state.set(Outcome::Ended);
                let output = &host.services.output;
                output.line(format_args!("a request failed: {:#}", failed.error));
                failed.refusal.response()
            }
        }
    }

    /// A request that is worth an instance's place: it is complete, or well on its way.
    async fn accept(&self, request: Request<Incoming>) -> Result<handler::Request, Refusal> {
        let (mut parts, body) = request.into_parts();
        let refusal = self.check(&mut parts).err();
        if let Some(refusal) = refusal {
            discard(body).await;
            return Err(refusal);
        }
        let body = read_beginning(body, self.request_timeout).await?;
        Ok(Request::from_parts(parts, body.boxed_unsync()))
    }

    fn check(&self, parts: &mut http::request::Parts) -> Result<(), Refusal> {
        authority::complete(parts, self.address)?;
        self.allowed_hosts.check(&parts.uri)?;
        if !self
            .handler
            .state()
            .program
            .manifest
            .serves(parts.uri.path())
        {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "not_found",
                "Nothing is served at this path.",
            ));
        }
        Ok(())
    }

    /// Waits for the head of the response and, if a burst has filled the pool of instances, for
    /// room in it: each instance serves many requests, so that there will soon be some.
    async fn handle(
        &self,
        mut pending: PendingRequest,
        mut request: handler::Request,
    ) -> Result<handler::Response, Failed> {
        let mut tries = 0;
        loop {
            let error = match self.handler.handle(pending, request).await {
                Ok(response) => return Ok(response),
                Err(error) => error.downcast::<InstantiationError<PendingRequest>>()?,
            };
            tries += 1;
            if tries > INSTANTIATION_TRIES {
                return Err(Failed {
                    refusal: Refusal::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "overloaded",
                        "The server has as many requests as it can take: try again in a moment.",
                    ),
                    error: wasmtime::format_err!("no instance could be created: {:#}", error.error),
                });
            }
            pending = error.request_data;
            request = error
                .request
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner);
            tokio::time::sleep(INSTANTIATION_PAUSE).await;
        }
    }
}

/// Why a request that was accepted has no response.
struct Failed {
    refusal: Refusal,
    error: wasmtime::Error,
}

impl Failed {
    fn too_long() -> Self {
        Self {
            refusal: Refusal::new(
                StatusCode::GATEWAY_TIMEOUT,
                "response_timeout",
                "The answer took longer than this server allows.",
            ),
            error: wasmtime::format_err!("it took longer than its limit"),
        }
    }
}

impl From<wasmtime::Error> for Failed {
    fn from(error: wasmtime::Error) -> Self {
        let refusal = Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "component_failed",
            "The server failed while it answered: its log says why.",
        );
        Self { refusal, error }
    }
}

/// An answer of the host's own.
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    error: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, error: impl Into<String>) -> Self {
        Self {
            status,
            code,
            error: error.into(),
        }
    }

    fn response(&self) -> Response<Body> {
        let body = serde_json::json!({"error": self.error, "code": self.code}).to_string();
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
        let mut response = Response::new(body.boxed_unsync());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<NotRead> for Refusal {
    fn from(reason: NotRead) -> Self {
        match reason {
            NotRead::TimedOut => Self::new(
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "The body did not come in time.",
            ),
            NotRead::BrokeOff => Self::new(
                StatusCode::BAD_REQUEST,
                "request_broke_off",
                "The body broke off, or is not framed as HTTP says.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[tokio::test]
    async fn an_overload_says_when_to_try_again() {
        let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Later.");
        let response = refusal.response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"error": "Later.", "code": "overloaded"})
        );
    }
}
