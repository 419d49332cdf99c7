//! An HTTP proxy that knows CONNECT and nothing else, for one machine.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// Serves until the listener fails. Says of each connection where it leads.
pub(crate) async fn serve(listener: TcpListener, passes_on_to: fn(&str)) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(pass_on(client, passes_on_to)); // a client or a hub that is gone is its own affair
    }
}

async fn pass_on(client: TcpStream, passes_on_to: fn(&str)) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await? == 0 || head.len() > 4096 {
            return Err(io::Error::other("no request"));
        }
    }
    let mut words = head.split(' ');
    let (Some("CONNECT"), Some(to)) = (words.next(), words.next()) else {
        return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n\r\n").await;
    };
    let mut hub = TcpStream::connect(to).await?;
    hub.set_nodelay(true)?;
    passes_on_to(to);
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut hub).await?;
    Ok(())
}
