//! Where the component's stdout and stderr go, and the host's own messages about it.

use std::io::Write as _;

use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p2::OutputStream as _;
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;

/// The stdout and stderr of this process by default; clones write to the same place.
#[derive(Clone, Debug, Default)]
pub struct Output(Option<MemoryOutputPipe>);

impl Output {
    /// Keeps all that is written in memory, for tests.
    pub fn capture() -> Self {
        Self(Some(MemoryOutputPipe::new(usize::MAX)))
    }

    /// What was captured so far.
    pub fn text(&self) -> String {
        let captured = self.0.as_ref().map(MemoryOutputPipe::contents);
        String::from_utf8_lossy(&captured.unwrap_or_default()).into_owned()
    }

    /// Writes a line of the host's own.
    pub(crate) fn line(&self, line: impl std::fmt::Display) {
        let line = format!("{line}\n");
        // Nothing sensible can be done about a closed stderr.
        let _ = match &self.0 {
            None => std::io::stderr().write_all(line.as_bytes()).is_ok(),
            Some(captured) => captured.clone().write(line.into()).is_ok(),
        };
    }

    pub(crate) fn attach(&self, wasi: &mut WasiCtxBuilder) {
        match &self.0 {
            None => wasi.inherit_stdout().inherit_stderr(),
            Some(captured) => wasi.stdout(captured.clone()).stderr(captured.clone()),
        };
    }
}
