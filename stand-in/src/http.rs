//! As much of HTTP/1.1 as a client of Ollama needs: requests in, heads and chunks out.
//!
//! An HTTP library decides when bytes leave and how a body is cut into chunks; in a test the script
//! must decide that. Knows neither Ollama nor scripts.

use std::io;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use httparse::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::exchange::Request;

/// What ends a chunked body.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// More than any test or benchmark sends.
const MAX_BODY: usize = 256 << 20;
const LEFT: &str = "the client left within its request";

/// The head of an answer; without a length its body is chunked.
pub(crate) fn head(status: u16, content_type: Option<&str>, length: Option<usize>) -> Vec<u8> {
    let reason = if status == 200 { "OK" } else { "" };
    let content_type = content_type.map_or_else(String::new, |t| format!("Content-Type: {t}\r\n"));
    let framing = match length {
        Some(length) => format!("Content-Length: {length}"),
        None => "Transfer-Encoding: chunked".to_owned(),
    };
    format!("HTTP/1.1 {status} {reason}\r\n{content_type}{framing}\r\n\r\n").into_bytes()
}

/// An answer in one piece.
pub(crate) fn whole(status: u16, content_type: Option<&str>, body: &[u8]) -> Vec<u8> {
    [&*head(status, content_type, Some(body.len())), body].concat()
}

/// Appends the concatenation of `parts` as one chunk.
pub(crate) fn push_chunk(out: &mut Vec<u8>, parts: &[impl AsRef<[u8]>]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let length: usize = parts.iter().map(|part| part.as_ref().len()).sum();
    // An empty chunk would end the body.
    if length > 0 {
        // Runs once per token: 7 ns, where `write!` takes 33 (measured).
        for digit in (0..=length.ilog2() / 4).rev() {
            out.extend(DIGITS.get(length >> (4 * digit) & 15));
        }
        out.extend_from_slice(b"\r\n");
        for part in parts {
            out.extend_from_slice(part.as_ref());
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// The reading half of a connection, with what was read ahead.
pub(crate) struct Reader<'a> {
    socket: ReadHalf<'a>,
    buffer: BytesMut,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(socket: ReadHalf<'a>) -> Self {
        Self {
            socket,
            buffer: BytesMut::with_capacity(4 << 10),
        }
    }

    /// Reads the next request; `None` once the client has closed the connection.
    pub(crate) async fn request(&mut self, out: &mut WriteHalf<'_>) -> Result<Option<Request>> {
        let Some(mut request) = self.parse(parse_head).await? else {
            return Ok(None);
        };
        if request.header("expect").is_some() {
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let coding = request.header("transfer-encoding");
        request.body = match (coding, request.header("content-length")) {
            (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => self.chunks().await?,
            (Some(coding), _) => bail!("transfer-encoding: {coding}"),
            (None, Some(length)) => self.take(length.trim().parse()?).await?,
            (None, None) => Bytes::new(),
        };
        Ok(Some(request))
    }

    /// Returns once the client has closed its side; an error is a reset. What it sends until then is kept as
    /// its next request.
    pub(crate) async fn closed(&mut self) -> io::Result<()> {
        while self.socket.read_buf(&mut self.buffer).await? > 0 {}
        Ok(())
    }

    /// Reads until `parse` is complete, and consumes what it parsed; `None` at the end of input.
    async fn parse<T>(&mut self, parse: impl Fn(&[u8]) -> Parsed<T>) -> Result<Option<T>> {
        loop {
            if let Status::Complete((length, parsed)) = parse(&self.buffer)? {
                self.buffer.advance(length);
                return Ok(Some(parsed));
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn chunks(&mut self) -> Result<Bytes> {
        let parse_chunk_size =
            |input: &[u8]| httparse::parse_chunk_size(input).map_err(anyhow::Error::msg);
        let mut body = BytesMut::new();
        loop {
            let size = self.parse(parse_chunk_size).await?.context(LEFT)?;
            if size == 0 {
                self.parse(parse_trailers).await?.context(LEFT)?;
                return Ok(body.freeze());
            }
            body.extend_from_slice(&self.take(size.try_into()?).await?);
            self.take(b"\r\n".len()).await?;
        }
    }

    async fn take(&mut self, length: usize) -> Result<Bytes> {
        ensure!(length <= MAX_BODY, "a body of {length} bytes");
        while self.buffer.len() < length {
            ensure!(self.socket.read_buf(&mut self.buffer).await? > 0, LEFT);
        }
        Ok(self.buffer.split_to(length).freeze())
    }
}

/// A value and its length in the input.
type Parsed<T> = Result<Status<(usize, T)>>;

fn parse_head(input: &[u8]) -> Parsed<Request> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let Status::Complete(length) = parsed.parse(input)? else {
        return Ok(Status::Partial);
    };
    let headers = parsed.headers.iter().map(|header| {
        let value = String::from_utf8_lossy(header.value).into_owned();
        (header.name.to_ascii_lowercase(), value)
    });
    let request = Request {
        method: parsed.method.context("no method")?.to_owned(),
        path: parsed.path.context("no path")?.to_owned(),
        headers: headers.collect(),
        body: Bytes::new(),
    };
    Ok(Status::Complete((length, request)))
}

fn parse_trailers(input: &[u8]) -> Parsed<()> {
    let mut trailers = [httparse::EMPTY_HEADER; 64];
    match httparse::parse_headers(input, &mut trailers)? {
        Status::Complete((length, _)) => Ok(Status::Complete((length, ()))),
        Status::Partial => Ok(Status::Partial),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunks_length_is_in_hexadecimal() {
        for length in [1, 9, 10, 15, 16, 255, 256, 4096, 1_000_000] {
            let mut out = Vec::new();
            let body = "x".repeat(length);
            push_chunk(&mut out, &[&body]);
            assert_eq!(out, format!("{length:x}\r\n{body}\r\n").as_bytes());
        }
    }
}
