//! The models that a prompt can name.

use std::time::Duration;

use http::StatusCode;

use super::Api;
use crate::error::{Code, RefusalCode, Rejection, RelayError};
use crate::http::{self as client, Answer};
use crate::ollama::object;

/// Bytes of the longest list: thousands of models.
const MAX: usize = 1024 * 1024;
const LIMIT: Duration = Duration::from_secs(10);

impl Api {
    /// `GET /models`: Ollama's own list, as it is.
    pub(crate) async fn models(&self) -> Result<Answer, Rejection> {
        let config = &self.config;
        let list = object::get(config, "/api/tags", MAX, LIMIT).await;
        let list = list.map_err(|failure| rejection(&failure.into_error(config)))?;
        Ok(client::json(StatusCode::OK, list))
    }
}

fn rejection(error: &RelayError) -> Rejection {
    let code = match error.code {
        Code::OllamaUnreachable => RefusalCode::OllamaUnreachable,
        Code::OllamaTimeout => RefusalCode::OllamaTimeout,
        Code::OllamaBrokeOff => RefusalCode::OllamaBrokeOff,
        _ => RefusalCode::OllamaRefused,
    };
    Rejection::new(code, error.text.clone()).with_detail("(GET /models)")
}
