//! Where the component's stdout and stderr go, and the host's own remarks about it.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};

/// A sink; its clones write to the same place.
#[derive(Clone, Debug, Default)]
pub enum Output {
    /// The stdout and stderr of this process.
    #[default]
    Inherit,
    /// Kept in memory, for tests to look at.
    Capture(Arc<Mutex<Vec<u8>>>),
}

impl Output {
    /// A sink whose [`text`](Self::text) can be read.
    pub fn capture() -> Self {
        Self::Capture(Arc::default())
    }

    /// What was written so far; empty where it was inherited.
    pub fn text(&self) -> String {
        match self {
            Self::Inherit => String::new(),
            Self::Capture(text) => {
                let text = text.lock().unwrap_or_else(PoisonError::into_inner);
                String::from_utf8_lossy(&text).into_owned()
            }
        }
    }

    /// A line of the host's own.
    pub(crate) fn line(&self, line: impl std::fmt::Display) {
        // Nothing sensible can be done about a closed stderr.
        let _ = Stream {
            output: self.clone(),
            stderr: true,
        }
        .write(format!("{line}\n").as_bytes());
    }

    pub(crate) fn stdout(&self) -> impl StdoutStream + 'static {
        Stream {
            output: self.clone(),
            stderr: false,
        }
    }

    pub(crate) fn stderr(&self) -> impl StdoutStream + 'static {
        Stream {
            output: self.clone(),
            stderr: true,
        }
    }
}

#[derive(Clone)]
struct Stream {
    output: Output,
    stderr: bool,
}

impl Stream {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.output {
            Output::Inherit if self.stderr => io::stderr().write_all(bytes),
            Output::Inherit => io::stdout().write_all(bytes),
            Output::Capture(text) => {
                text.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.write(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match (&self.output, self.stderr) {
            (Output::Inherit, false) => io::stdout().flush(),
            _ => Ok(()),
        })
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
