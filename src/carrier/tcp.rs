//! TCP as a carrier.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::race::race;
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

/// How long an address may take before the next is tried beside it (RFC 8305 §8).
const HEAD_START: Duration = Duration::from_millis(250);

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

/// Resolves the host afresh and connects to the first of its addresses that answers, of both families in turn.
///
/// # Errors
/// [`DialFailure`] says whether the name or the connection failed.
pub(crate) async fn dial(to: &HostPort, timeout: Duration) -> Result<Carried, DialFailure> {
    let unresolved = |source| DialFailure::Resolve { host: to.host.clone(), source };
    let attempt = async {
        let found = tokio::net::lookup_host((to.host.as_str(), to.port)).await.map_err(unresolved)?;
        let addresses = in_turn(found.collect());
        if addresses.is_empty() {
            return Err(unresolved(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
        }
        let connect = |address| async move { Carried::tcp(TcpStream::connect(address).await?, address) };
        race(addresses.into_iter().map(connect), HEAD_START).await.map_err(|mut errors| {
            // Each address has its own error; the last is no worse than the others.
            DialFailure::Connect(errors.pop().unwrap_or_else(|| io::ErrorKind::NotConnected.into()))
        })
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(DialFailure::Connect(io::ErrorKind::TimedOut.into())),
    }
}

/// Beginning with the resolver's favourite, the two families by turns: where one is broken as a whole, the other comes
/// second and not last.
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().copied() else { return addresses };
    let (favourite, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv6() == first.is_ipv6());
    let (mut favourite, mut other) = (favourite.into_iter(), other.into_iter());
    let mut all = Vec::new();
    loop {
        let pair = [favourite.next(), other.next()];
        if pair == [None, None] {
            return all;
        }
        all.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let all = |list: &[&str]| list.iter().map(|address| address.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let given = all(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        assert_eq!(in_turn(given), all(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]));
        let given = all(&["1.1.1.1:1", "2.2.2.2:1", "[::1]:1"]);
        assert_eq!(in_turn(given), all(&["1.1.1.1:1", "[::1]:1", "2.2.2.2:1"]));
        assert_eq!(in_turn(Vec::new()), Vec::new());
    }

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
