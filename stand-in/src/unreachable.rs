//! Addresses at which no server answers, for tests of a client's errors and timeouts.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::server::ANY_PORT;

/// An address that refuses connections for as long as this value lives.
#[derive(Debug)]
pub struct Refused {
    address: SocketAddr,
    // Bound but not listening: nobody else can take the port.
    socket: TcpSocket,
}

impl Refused {
    /// Takes a free port.
    pub fn new() -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(ANY_PORT.into())?;
        let address = socket.local_addr()?;
        Ok(Self { address, socket })
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// An address at which connecting neither succeeds nor fails.
#[derive(Debug)]
pub struct Unresponsive {
    address: SocketAddr,
    // The connections fill the listener's backlog, and nobody accepts them.
    _held: (TcpListener, Vec<TcpStream>),
}

impl Unresponsive {
    /// Takes a free port.
    pub async fn new() -> anyhow::Result<Self> {
        let Refused { address, socket } = Refused::new()?;
        let listener = socket.listen(1)?;
        let mut backlog = Vec::new();
        // Connecting takes no time while the backlog has room.
        let at_once = Duration::from_millis(200);
        while let Ok(connected) = timeout(at_once, TcpStream::connect(address)).await {
            backlog.push(connected?);
        }
        let _held = (listener, backlog);
        Ok(Self { address, _held })
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}
