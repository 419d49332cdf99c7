//! TCP as a carrier.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::{Carried, DialFailure, HostPort};

/// When the kernel starts to probe a silent connection. SSH keepalives are faster; this is for a process that hangs.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long sent data may stay unacknowledged before the kernel gives the connection up (RFC 5482).
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// How much the kernel may hold that is not even on its way yet. Left alone it takes megabytes, and on a slow path the
/// keepalives behind them come too late. What is on its way is not counted, so a long fat path stays full.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 * 1024;

/// Sets what a tunnel needs on a connected socket: no Nagle delay, a short queue, and an end when the network is gone.
///
/// # Errors
/// When the socket is already dead.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(15));
    #[cfg(target_os = "linux")]
    let keepalive = keepalive.with_retries(4);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT)?;
    Ok(())
}

/// Errors of the connection that was next in line, not of the listener (accept(2)).
pub(crate) fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// Resolves the host afresh and connects to the first of its addresses that answers.
///
/// # Errors
/// [`DialFailure`] says whether the name or the connection failed.
pub(super) async fn dial(to: &HostPort, timeout: Duration) -> Result<Carried, DialFailure> {
    let unresolved = |source| DialFailure::Resolve { host: to.host.clone(), source };
    let attempt = async {
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((to.host.as_str(), to.port)).await.map_err(unresolved)?.collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        if addresses.is_empty() {
            return Err(unresolved(last));
        }
        // One address that swallows packets must not use up the time of the others.
        let share = timeout / u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        for address in addresses {
            let connected = match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(connected) => connected,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            match connected.and_then(|stream| Carried::tcp(stream, address)) {
                Ok(carried) => return Ok(carried),
                Err(error) => last = error,
            }
        }
        Err(DialFailure::Connect(last))
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(DialFailure::Connect(io::ErrorKind::TimedOut.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_are_prepared_for_small_messages_and_lost_networks() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = HostPort::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let dialled = TcpStream::connect((to.host.as_str(), to.port)).await.unwrap();
        prepare(&dialled).unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        prepare(&accepted).unwrap();
        for stream in [dialled, accepted] {
            assert!(stream.nodelay().unwrap());
            let socket = SockRef::from(&stream);
            assert!(socket.keepalive().unwrap());
            #[cfg(target_os = "linux")]
            {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
                assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
            }
        }
    }
}
