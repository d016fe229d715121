//! As much of HTTP/1.1 as a client of Ollama needs, on a bare socket.
//!
//! An HTTP library decides by itself when bytes leave and how a body is cut into chunks, which is
//! just what the tests must decide. Knows neither Ollama nor scripts.

use std::io;

use anyhow::{Context, bail};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::exchange::{Exchange, Request};

/// The body that ends a chunked body.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// More than any test or benchmark sends.
const MAX_REQUEST: usize = 256 << 20;

/// Reads one request; `None` when the client closed the connection instead of asking again.
pub(crate) async fn read_request(
    socket: &mut ReadHalf<'_>,
    write: &mut WriteHalf<'_>,
    buffer: &mut BytesMut,
) -> anyhow::Result<Option<Request>> {
    let (mut request, framing) = loop {
        if let Some(head) = parse_head(buffer)? {
            break head;
        }
        if socket.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    if request.header("expect").is_some() {
        write.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    request.body = match framing {
        Framing::Length(length) => {
            fill(socket, buffer, length).await?;
            buffer.split_to(length).freeze()
        }
        Framing::Chunked => read_chunks(socket, buffer).await?,
    };
    Ok(Some(request))
}

/// Returns once the client has closed its side. What it sends meanwhile is its next request.
pub(crate) async fn client_left(socket: &mut ReadHalf<'_>, buffer: &mut BytesMut) {
    while matches!(socket.read_buf(buffer).await, Ok(1..)) {}
}

/// The head of an answer; without a length its body is chunked.
pub(crate) fn head(status: u16, content_type: Option<&str>, length: Option<usize>) -> Vec<u8> {
    let reason = if status == 200 { "OK" } else { "" };
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    if let Some(content_type) = content_type {
        head += &format!("Content-Type: {content_type}\r\n");
    }
    match length {
        Some(length) => head += &format!("Content-Length: {length}\r\n\r\n"),
        None => head += "Transfer-Encoding: chunked\r\n\r\n",
    }
    head.into_bytes()
}

/// Opens a chunk of `length` bytes, which the caller appends, followed by `\r\n`.
pub(crate) fn open_chunk(out: &mut Vec<u8>, length: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    out.extend(
        (0..digits)
            .rev()
            .filter_map(|i| DIGITS.get(length >> (4 * i) & 15)),
    );
    out.extend_from_slice(b"\r\n");
}

/// Writes it all, counting what the socket has accepted as it accepts it.
pub(crate) async fn write(
    socket: &mut WriteHalf<'_>,
    mut bytes: &[u8],
    exchange: &Exchange,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let accepted = socket.write(bytes).await?;
        exchange.sent(accepted);
        bytes.advance(accepted);
    }
    Ok(())
}

enum Framing {
    Length(usize),
    Chunked,
}

fn parse_head(buffer: &mut BytesMut) -> anyhow::Result<Option<(Request, Framing)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = parsed.parse(buffer)? else {
        return Ok(None);
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
    let chunked = request.header("transfer-encoding");
    let framing = match (chunked, request.header("content-length")) {
        (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunked,
        (Some(coding), _) => bail!("transfer-encoding: {coding}"),
        (None, Some(length)) => Framing::Length(length.trim().parse()?),
        (None, None) => Framing::Length(0),
    };
    buffer.advance(length);
    Ok(Some((request, framing)))
}

async fn read_chunks(socket: &mut ReadHalf<'_>, buffer: &mut BytesMut) -> anyhow::Result<Bytes> {
    let mut body = BytesMut::new();
    loop {
        let line = read_line(socket, buffer).await?;
        let digits = str::from_utf8(&line)?.split(';').next().unwrap_or_default();
        let length = usize::from_str_radix(digits.trim(), 16)?;
        if length == 0 {
            while !read_line(socket, buffer).await?.is_empty() {}
            return Ok(body.freeze());
        }
        fill(socket, buffer, length + 2).await?;
        body.extend_from_slice(&buffer.split_to(length));
        buffer.advance(2);
    }
}

/// A line without its `\r\n`.
async fn read_line(socket: &mut ReadHalf<'_>, buffer: &mut BytesMut) -> anyhow::Result<BytesMut> {
    loop {
        if let Some(end) = buffer.windows(2).position(|two| two == b"\r\n") {
            let line = buffer.split_to(end);
            buffer.advance(2);
            return Ok(line);
        }
        let more = buffer.len() + 1;
        fill(socket, buffer, more).await?;
    }
}

async fn fill(
    socket: &mut ReadHalf<'_>,
    buffer: &mut BytesMut,
    length: usize,
) -> anyhow::Result<()> {
    if length > MAX_REQUEST {
        bail!("a request of {length} bytes");
    }
    while buffer.len() < length {
        if socket.read_buf(buffer).await? == 0 {
            bail!("the client left in the middle of its request");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunks_length_is_in_hexadecimal() {
        for length in [0, 1, 9, 10, 15, 16, 255, 256, 4096, 1_000_000] {
            let mut out = Vec::new();
            open_chunk(&mut out, length);
            assert_eq!(String::from_utf8_lossy(&out), format!("{length:x}\r\n"));
        }
    }
}
