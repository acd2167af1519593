//! A network link to a server that can be made slow, silent or dead while it is in use.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What becomes of the server's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Each piece of an answer comes this much later.
    Slow(Duration),
    /// Connections are taken and nothing is ever answered.
    Silent,
    /// Connections are cut, and new ones as soon as they are made.
    Cut,
}

/// Listens on a port of its own and passes everything on. Ends with the value.
#[derive(Debug)]
pub struct SlowLink {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    _task: JoinSet<()>,
}

impl SlowLink {
    /// A link to `target`, `host:port`.
    pub async fn to(target: &str) -> Result<SlowLink> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let weather = watch::Sender::new(Weather::Fair);
        let (seen, target) = (weather.subscribe(), target.to_owned());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, target.clone(), seen.clone()));
            }
        });
        Ok(SlowLink { address, weather, _task: task })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn carry(client: TcpStream, target: String, mut weather: watch::Receiver<Weather>) {
    let mut cut = weather.clone();
    let carried = async {
        let server = TcpStream::connect(&target).await?;
        // Answers are small, and every one of them is waited for.
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let there = tokio::io::copy(&mut from_client, &mut to_server);
        let back = async {
            let mut piece = vec![0; 64 * 1024];
            loop {
                let count = from_server.read(&mut piece).await?;
                if count == 0 {
                    return Ok(());
                }
                let now = *weather.borrow_and_update();
                match now {
                    Weather::Slow(delay) => tokio::time::sleep(delay).await,
                    Weather::Silent => {
                        let _ = weather.wait_for(|weather| *weather != Weather::Silent).await;
                    }
                    Weather::Fair | Weather::Cut => {}
                }
                to_client.write_all(&piece[..count]).await?;
            }
        };
        let ended: std::io::Result<()> = tokio::select! {
            there = there => there.map(|_| ()),
            back = back => back,
        };
        ended
    };
    // Either way the connection is gone, which is all that its ends may learn.
    tokio::select! {
        _ = carried => {}
        _ = cut.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}
