//! Proxies that agents get out through, one that takes CONNECT and one that speaks SOCKS5, as far as an agent needs them;
//! and real ones.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinSet,
};

use super::peers::{Peer, find_program};

/// What a proxy is asked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1 (RFC 9110 §9.3.6).
    Connect,
    /// RFC 1928, without a password.
    Socks5,
}

/// A running proxy. Dropping it ends it and its connections.
pub struct Egress {
    url: String,
    carried: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Egress {
    /// Starts one on a free port of 127.0.0.1.
    pub async fn start(speaks: Speaks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let scheme = if speaks == Speaks::Connect { "http" } else { "socks5" };
        let carried = Arc::new(AtomicUsize::new(0));
        let (mut tasks, count) = (JoinSet::new(), carried.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.expect("accept");
                connections.spawn(carry(speaks, near, count.clone()));
            }
        });
        Self { url: format!("{scheme}://{address}"), carried, _tasks: tasks }
    }

    /// What an agent is told.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many connections have got out through it.
    pub fn carried(&self) -> usize {
        self.carried.load(Ordering::Relaxed)
    }
}

async fn carry(speaks: Speaks, mut near: TcpStream, carried: Arc<AtomicUsize>) {
    let dialled = match speaks {
        Speaks::Connect => connect(&mut near).await,
        Speaks::Socks5 => socks5(&mut near).await,
    };
    let Ok(mut far) = dialled else { return }; // the agent says so
    carried.fetch_add(1, Ordering::Relaxed);
    let _ = near.set_nodelay(true).and(far.set_nodelay(true)); // a connection that is gone needs none
    let _ = copy_bidirectional(&mut near, &mut far).await; // either end may break off
}

async fn connect(near: &mut TcpStream) -> io::Result<TcpStream> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let far = TcpStream::connect(target.ok_or(io::ErrorKind::InvalidData)?).await?;
    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    Ok(far)
}

async fn socks5(near: &mut TcpStream) -> io::Result<TcpStream> {
    let [_version, methods] = read(near).await?;
    near.read_exact(&mut vec![0; methods.into()]).await?;
    near.write_all(&[5, 0]).await?;
    let [_version, _command, _reserved, kind] = read(near).await?;
    let host = match kind {
        1 => Ipv4Addr::from(read::<4>(near).await?).to_string(),
        4 => Ipv6Addr::from(read::<16>(near).await?).to_string(),
        _ => {
            let mut name = vec![0; near.read_u8().await?.into()];
            near.read_exact(&mut name).await?;
            String::from_utf8_lossy(&name).into_owned()
        }
    };
    let far = TcpStream::connect((host, near.read_u16().await?)).await?;
    near.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    Ok(far)
}

async fn read<const N: usize>(near: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    near.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// What real proxies dial from, so that a hub can tell who came through one.
pub const PROXYS: &str = "127.0.0.5";

async fn listening(start: impl Fn(u16) -> Command) -> (Peer, u16) {
    for _ in 0..5 {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let peer = Peer::start(&mut start(port));
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return (peer, port);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    panic!("it does not listen");
}

/// A running tinyproxy, with more in its configuration, and its port.
pub async fn tinyproxy(dir: &Path, more: &str) -> (Peer, u16) {
    listening(|port| {
        let config = format!("Port {port}\nListen 127.0.0.1\nBind {PROXYS}\nTimeout 600\nMaxClients 50\n{more}\n");
        let file = dir.join(format!("tinyproxy-{port}.conf"));
        std::fs::write(&file, config).expect("write");
        let mut command = Command::new(find_program("tinyproxy").expect("it is there"));
        command.arg("-d").arg("-c").arg(file);
        command
    })
    .await
}

/// The same of microsocks, which takes arguments.
pub async fn microsocks(more: &[&str]) -> (Peer, u16) {
    listening(|port| {
        let mut command = Command::new(find_program("microsocks").expect("it is there"));
        command.args(["-i", "127.0.0.1", "-b", PROXYS, "-p", &port.to_string()]).args(more);
        command
    })
    .await
}
