//! A TCP proxy that stands for the network, and fails on command.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A network between a client and a server. [`Wire::restore`] undoes everything but a cut and silence.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    fault: watch::Sender<Fault>,
    /// The number of cuts: a connection ends when it changes.
    cuts: watch::Sender<usize>,
    /// The connections up to this one, in the order of their acceptance, are silent.
    silent: AtomicUsize,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// New connections are closed at once.
    Refuse,
    /// What the server sends is lost; what the client sends arrives.
    SwallowAnswers,
    /// Everything is held back, in both directions; nothing is lost.
    Hold,
    /// Everything takes this long, each way.
    Delay(Duration),
}

impl Wire {
    /// A network that works.
    pub async fn to(server: SocketAddr) -> Result<Self> {
        Self::between(Ipv4Addr::LOCALHOST, server).await
    }

    /// A network that works; clients connect to it at `near`.
    pub async fn between(near: Ipv4Addr, server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((near, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            fault: watch::Sender::default(),
            cuts: watch::Sender::default(),
            silent: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        let task = tokio::spawn(accept(listener, server, shared.clone()));
        Ok(Self {
            address,
            shared,
            task,
        })
    }

    /// Where the client connects instead of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection that is open now (an RST to both sides).
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Loses, for ever, all that is sent on the connections that are open now, as a router does that has
    /// forgotten them. New ones work.
    pub fn silence(&self) {
        self.shared.silent.store(self.accepted(), Ordering::Relaxed);
    }

    /// Closes every new connection at once.
    pub fn refuse(&self) {
        self.shared.fault.send_replace(Fault::Refuse);
    }

    /// Refuses new connections and cuts those that are open.
    pub fn take_down(&self) {
        self.refuse();
        self.cut();
    }

    /// Loses everything that the server sends from now on.
    pub fn swallow_answers(&self) {
        self.shared.fault.send_replace(Fault::SwallowAnswers);
    }

    /// Holds everything back, and loses nothing.
    pub fn hold(&self) {
        self.shared.fault.send_replace(Fault::Hold);
    }

    /// Delays everything.
    pub fn delay(&self, duration: Duration) {
        self.shared.fault.send_replace(Fault::Delay(duration));
    }

    /// Lets everything pass again.
    pub fn restore(&self) {
        self.shared.fault.send_replace(Fault::None);
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                let number = shared.accepted.fetch_add(1, Ordering::Relaxed) + 1;
                let shared = shared.clone();
                connections.spawn(async move {
                    shared.open.fetch_add(1, Ordering::Relaxed);
                    // Connections that fail are what this is for.
                    let _ = connect(client, server, number, &shared).await;
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(
    mut client: TcpStream,
    server: SocketAddr,
    number: usize,
    shared: &Shared,
) -> Result<()> {
    let mut cuts = shared.cuts.subscribe();
    if *shared.fault.borrow() == Fault::Refuse {
        return reset(&client);
    }
    let mut server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            // First: what is held when the wire is cut never arrives, even if it is restored at once.
            biased;
            _ = cuts.changed() => Err(anyhow!("cut")),
            ended = pump(from_client, to_server, false, number, shared) => ended,
            ended = pump(from_server, to_client, true, number, shared) => ended,
        }
    };
    // Neither HTTP nor PostgreSQL goes on with half a connection: the first end is the end.
    if ended.is_err() {
        reset(&client)?;
        reset(&server)?;
    }
    Ok(())
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    is_answer: bool,
    number: usize,
    shared: &Shared,
) -> Result<()> {
    let mut fault = shared.fault.subscribe();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if number <= shared.silent.load(Ordering::Relaxed) {
            continue;
        }
        let now = *fault.wait_for(|fault| *fault != Fault::Hold).await?;
        match now {
            Fault::Delay(duration) => tokio::time::sleep(duration).await,
            Fault::SwallowAnswers if is_answer => continue,
            _ => {}
        }
        to.write_all(buffer.get(..read).unwrap_or_default()).await?;
    }
}

/// Turns the close that follows into an RST.
fn reset(stream: &TcpStream) -> Result<()> {
    Ok(socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{until, within};

    /// A server that returns what it receives.
    async fn echo() -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        Ok(address)
    }

    async fn ping(stream: &mut TcpStream) -> Result<()> {
        stream.write_all(b"ping").await?;
        receive(stream, b"ping").await
    }

    async fn receive(stream: &mut TcpStream, expected: &[u8; 4]) -> Result<()> {
        let mut received = [0; 4];
        within("an echo", stream.read_exact(&mut received)).await??;
        assert_eq!(&received, expected);
        Ok(())
    }

    async fn receive_nothing(stream: &TcpStream) {
        let nothing = tokio::time::timeout(Duration::from_millis(100), stream.peek(&mut [0])).await;
        assert!(nothing.is_err());
    }

    #[tokio::test]
    async fn it_passes_cuts_and_restores() -> Result<()> {
        let wire = Wire::to(echo().await?).await?;
        let mut stream = TcpStream::connect(wire.address()).await?;
        ping(&mut stream).await?;
        assert_eq!((wire.accepted(), wire.open()), (1, 1));

        wire.cut();
        assert!(ping(&mut stream).await.is_err());
        until("the connection's end", async || Ok(wire.open() == 0)).await?;

        wire.refuse();
        let mut stream = TcpStream::connect(wire.address()).await?;
        assert!(ping(&mut stream).await.is_err());

        wire.restore();
        let mut stream = TcpStream::connect(wire.address()).await?;
        ping(&mut stream).await?;
        Ok(())
    }

    #[tokio::test]
    async fn silence_is_for_the_connections_that_are_open() -> Result<()> {
        let wire = Wire::to(echo().await?).await?;
        let mut silent = TcpStream::connect(wire.address()).await?;
        ping(&mut silent).await?;

        wire.silence();
        silent.write_all(b"lost").await?;
        receive_nothing(&silent).await;
        let mut stream = TcpStream::connect(wire.address()).await?;
        ping(&mut stream).await?;
        Ok(())
    }

    #[tokio::test]
    async fn what_is_held_comes_later_and_what_is_swallowed_never() -> Result<()> {
        let wire = Wire::to(echo().await?).await?;
        let mut stream = TcpStream::connect(wire.address()).await?;
        ping(&mut stream).await?;

        wire.hold();
        stream.write_all(b"held").await?;
        receive_nothing(&stream).await;
        wire.restore();
        receive(&mut stream, b"held").await?;

        wire.swallow_answers();
        stream.write_all(b"lost").await?;
        receive_nothing(&stream).await;
        wire.restore();
        ping(&mut stream).await?;
        Ok(())
    }
}
