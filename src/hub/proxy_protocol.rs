//! The PROXY protocol of HAProxy, versions 1 and 2: a proxy says in front of all else where a connection comes from
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>).

use std::fmt::Display;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::carrier::{Carried, CarrierKind};
use crate::ssh::Sources;

/// How a header of version 1 begins (§2.1).
const V1: &[u8] = b"PROXY ";

/// The longest header of version 1, in bytes (§2.1).
const V1_MAX: usize = 107;

/// What every header of version 2 has: the signature, a command, a family and how much follows (§2.2).
const V2_HEAD: usize = 16;

/// How much may follow, in bytes: addresses are 216 at most, and the rest is for what proxies add, such as a client's
/// certificate.
const V2_MAX: usize = 4096;

/// The command of version 2 for what a proxy has to say itself, such as a health check.
const V2_LOCAL: u8 = 0x20;

/// Whose connections begin with a header.
pub(super) struct ProxyProtocol {
    trusted: Sources,
}

impl ProxyProtocol {
    pub(super) fn of(trusted: Sources) -> Self {
        Self { trusted }
    }

    /// Whether this one does. What the user hands over has its address from the user.
    pub(super) fn is_spoken_by(&self, carried: &Carried) -> bool {
        carried.kind == CarrierKind::Tcp && self.trusted.allows(carried.peer.map(|peer| peer.ip()))
    }
}

/// Reads a header and nothing behind it, and gives the address that it names. None if it names none.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, String> {
    let mut header = Vec::new();
    loop {
        let missing = missing(&header)?;
        if missing == 0 {
            return address(&header);
        }
        let read = stream.take(missing as u64).read_buf(&mut header).await;
        if read.map_err(|error| format!("no PROXY protocol header: {error}"))? == 0 {
            return Err("the connection ended before its PROXY protocol header did".into());
        }
    }
}

/// How many bytes there are still at least of a header that begins so; 0 if this is all of it.
fn missing(header: &[u8]) -> Result<usize, String> {
    let begins = |wanted: &[u8]| header.iter().zip(wanted).all(|(is, wanted)| is == wanted);
    if begins(v2::PROTOCOL_PREFIX) {
        let Some(&[high, low]) = header.get(V2_HEAD - 2..V2_HEAD) else {
            // The shortest header of version 1 is longer than this signature.
            let known = if header.len() < v2::PROTOCOL_PREFIX.len() { v2::PROTOCOL_PREFIX.len() } else { V2_HEAD };
            return Ok(known - header.len());
        };
        match usize::from(u16::from_be_bytes([high, low])) {
            more if more > V2_MAX => Err(format!("its PROXY protocol header is longer than {V2_MAX} bytes: {more}")),
            more => Ok(V2_HEAD + more - header.len()),
        }
    } else if !begins(V1) {
        Err("a trusted proxy has to begin with a PROXY protocol header".into())
    } else if header.ends_with(b"\r\n") {
        Ok(0)
    } else if header.len() == V1_MAX {
        Err(format!("its PROXY protocol header does not end within {V1_MAX} bytes"))
    } else {
        Ok(1)
    }
}

/// The address that a header names.
fn address(header: &[u8]) -> Result<Option<SocketAddr>, String> {
    if header.starts_with(v2::PROTOCOL_PREFIX) {
        // What else is in there has no meaning then, not even the family.
        if header.get(v2::PROTOCOL_PREFIX.len()) == Some(&V2_LOCAL) {
            return Ok(None);
        }
        let header = v2::Header::try_from(header).map_err(senseless)?;
        return Ok(match (header.protocol, header.addresses) {
            (v2::Protocol::Stream, v2::Addresses::IPv4(at)) => Some((at.source_address, at.source_port).into()),
            (v2::Protocol::Stream, v2::Addresses::IPv6(at)) => Some((at.source_address, at.source_port).into()),
            _ => None,
        });
    }
    // What follows has no meaning either, whatever it is.
    if header.starts_with(b"PROXY UNKNOWN ") || header == b"PROXY UNKNOWN\r\n" {
        return Ok(None);
    }
    // As bytes: ppp's way from a `&str` may cut a character in two.
    match v1::Header::try_from(header).map_err(senseless)?.addresses {
        v1::Addresses::Tcp4(at) => Ok(Some((at.source_address, at.source_port).into())),
        v1::Addresses::Tcp6(at) => Ok(Some((at.source_address, at.source_port).into())),
        v1::Addresses::Unknown => Ok(None),
    }
}

fn senseless(error: impl Display) -> String {
    format!("its PROXY protocol header makes no sense: {error}").escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// What is read of these bytes, and what is left of them.
    fn read_all(bytes: &[u8]) -> (Result<Option<SocketAddr>, String>, &[u8]) {
        let mut rest = bytes;
        let read = std::pin::pin!(read(&mut rest)).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(read) = read else { panic!("what is there is not waited for") };
        (read, rest)
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("a length").to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[command, family], &length, body].concat()
    }

    const V4: [u8; 12] = [203, 0, 113, 9, 10, 0, 0, 1, 0x30, 0x39, 0, 22];

    fn v6(source: &str) -> Vec<u8> {
        let source: std::net::Ipv6Addr = source.parse().expect("an address");
        [&source.octets()[..], &[0; 16], &[0x30, 0x39, 0, 22]].concat()
    }

    /// Headers, and what they name.
    fn good() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let with_tlv = |address: &[u8]| [address, &[0x04, 0, 2, 7, 7]].concat();
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        vec![
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 12345 22\r\n".to_vec(), Some("203.0.113.9:12345")),
            (b"PROXY TCP6 2001:db8::9 ::1 12345 22\r\n".to_vec(), Some("[2001:db8::9]:12345")),
            (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 12345 22\r\n".to_vec(), Some("[::ffff:203.0.113.9]:12345")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (format!("PROXY UNKNOWN {longest} {longest} 65535 65535\r\n").into(), None),
            (b"PROXY UNKNOWN \xff one two three four five\r\r\n".to_vec(), None),
            (v2(0x21, 0x11, &V4), Some("203.0.113.9:12345")),
            (v2(0x21, 0x21, &v6("2001:db8::9")), Some("[2001:db8::9]:12345")),
            (v2(0x21, 0x21, &v6("::ffff:203.0.113.9")), Some("[::ffff:203.0.113.9]:12345")),
            (v2(0x21, 0x11, &with_tlv(&V4)), Some("203.0.113.9:12345")),
            (v2(0x21, 0x11, &[&V4[..], &[9; V2_MAX - 12]].concat()), Some("203.0.113.9:12345")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &V4), None),
            (v2(0x20, 0x11, &[]), None),
            (v2(0x20, 0xff, &[1, 2, 3]), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x00, &[1, 2, 3]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
            (v2(0x21, 0x12, &V4), None),
        ]
    }

    #[test]
    fn headers_name_an_address_and_what_follows_is_left() {
        for (header, named) in good() {
            let expected = named.map(|address| address.parse().expect("an address"));
            // What follows may itself look like a header, or like its end.
            for more in [&b""[..], b"SSH-2.0-x\r\n", b"\r\n", v2::PROTOCOL_PREFIX] {
                let bytes = [&header, more].concat();
                assert_eq!(read_all(&bytes), (Ok(expected), more), "{}", header.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn headers_may_come_byte_by_byte() {
        for (header, named) in good() {
            let (mut proxy, mut hub) = tokio::io::duplex(1);
            let sent = header.clone();
            let proxy = tokio::spawn(async move {
                for byte in sent {
                    proxy.write_all(&[byte]).await.expect("it is read");
                    tokio::task::yield_now().await;
                }
                proxy
            });
            let address = read(&mut hub).await.expect("a header");
            assert_eq!(address.map(|address| address.to_string()).as_deref(), named, "{}", header.escape_ascii());
            drop(proxy.await.expect("no panic"));
        }
    }

    #[test]
    fn half_a_header_is_none() {
        for (header, _) in good() {
            for cut in [1, 5, 11, 14, header.len() - 1] {
                let error = read_all(&header[..cut]).0.expect_err("half a header");
                assert!(error.contains("ended before"), "{}: {error}", header[..cut].escape_ascii());
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "has to begin"),
            (b"GET / HTTP/1.1\r\n".to_vec(), "has to begin"),
            (b"\x16\x03\x01\x02\x00".to_vec(), "has to begin"),
            (b"proxy TCP4 203.0.113.9 10.0.0.1 12345 22\r\n".to_vec(), "has to begin"),
            (b"PROXY\r\n".to_vec(), "has to begin"),
            (b"\r\n\r\n\0\r\nQUIT\r\n".to_vec(), "has to begin"),
            (b"PROXY \r\n".to_vec(), "no sense"),
            (b"PROXY TCP4\r\n".to_vec(), "no sense"),
            (b"PROXY TCP5 203.0.113.9 10.0.0.1 12345 22\r\n".to_vec(), "no sense"),
            (b"PROXY UDP4 203.0.113.9 10.0.0.1 12345 22\r\n".to_vec(), "no sense"),
            (b"PROXY UNKNOWNS\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 12345\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 12345 22 1\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 12345 22 \r\n".to_vec(), "no sense"),
            (b"PROXY TCP4  203.0.113.9 10.0.0.1 12345 22\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 203.0.113.256 10.0.0.1 12345 22\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 203.0.113.09 10.0.0.1 12345 22\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 2001:db8::9 ::1 12345 22\r\n".to_vec(), "no sense"),
            (b"PROXY TCP6 203.0.113.9 10.0.0.1 12345 22\r\n".to_vec(), "no sense"),
            (b"PROXY TCP6 fe80::1%eth0 ::1 12345 22\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 65536 22\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 -1 22\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 012 22\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 12345 22 \nSSH-2.0-x\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 203.0.113.9\r10.0.0.1 12345 22\r\n".to_vec(), "no sense"),
            (b"PROXY TCP4 \xff 10.0.0.1 12345 22\r\n".to_vec(), "no sense"),
            ([&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(), "within 107"),
            (v2(0x11, 0x11, &V4), "no sense"),
            (v2(0x31, 0x11, &V4), "no sense"),
            (v2(0x22, 0x11, &V4), "no sense"),
            (v2(0x21, 0x41, &V4), "no sense"),
            (v2(0x21, 0x13, &V4), "no sense"),
            (v2(0x21, 0x11, &V4[..11]), "no sense"),
            (v2(0x21, 0x21, &V4), "no sense"),
            (v2(0x21, 0x31, &[0; 215]), "no sense"),
            (v2(0x21, 0x11, &[0; V2_MAX + 1]), "longer than 4096"),
            (v2(0x20, 0x00, &[0; u16::MAX as usize]), "longer than 4096"),
        ];
        for (header, why) in cases {
            let error = read_all(&header).0.expect_err(&header.escape_ascii().to_string());
            assert!(error.contains(why) && !error.contains(char::is_control), "{}: {error}", header.escape_ascii());
        }
    }

    /// Whoever sends something else does not have to send much of it.
    #[test]
    fn what_is_no_header_is_refused_at_once() {
        for wrong in [&b"S"[..], b"PROXX", b"\r\n\r\r", b"\0"] {
            assert!(read_all(wrong).0.expect_err("no header").contains("has to begin"), "{}", wrong.escape_ascii());
        }
    }

    /// Bytes that get further than the first few.
    fn likely() -> impl Strategy<Value = Vec<u8>> {
        let any = || prop::collection::vec(any::<u8>(), 0..300);
        let beginning = prop::sample::select(vec![
            &b""[..],
            b"PROXY ",
            b"PROXY TCP4 ",
            b"PROXY TCP6 ",
            b"PROXY UNKNOWN",
            v2::PROTOCOL_PREFIX,
            b"\r\n\r\n\0\r\nQUIT\n\x20\x11",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0",
        ]);
        let words = prop::collection::vec("[0-9a-f:. \r\n]{0,12}|é|1 2|192.0.2.1 |\r\n", 0..12);
        let rest = prop_oneof![any(), words.prop_map(|words| words.concat().into_bytes())];
        (beginning, rest).prop_map(|(beginning, rest)| [beginning, &rest].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn no_bytes_do_harm(bytes in likely()) {
            let (read, rest) = read_all(&bytes);
            prop_assert!(bytes.len() - rest.len() <= V2_HEAD + V2_MAX);
            // What is taken for a header is one to its last byte, and does not depend on what follows.
            if read.is_ok() {
                let header = &bytes[..bytes.len() - rest.len()];
                prop_assert_eq!(missing(header), Ok(0));
                prop_assert!(missing(&header[..header.len() - 1]).is_ok_and(|missing| missing > 0));
                prop_assert_eq!(read_all(header), (read, &b""[..]));
            }
        }

        #[test]
        fn every_address_is_read_back(address: SocketAddr, destination: SocketAddr) {
            let (family, octets) = match address {
                SocketAddr::V4(v4) => ("TCP4", v4.ip().octets().to_vec()),
                SocketAddr::V6(v6) => ("TCP6", v6.ip().octets().to_vec()),
            };
            let (ip, port) = (address.ip(), address.port());
            let text = format!("PROXY {family} {ip} {ip} {port} {}\r\n", destination.port());
            let code = if address.is_ipv4() { 0x11 } else { 0x21 };
            let binary = v2(0x21, code, &[&octets[..], &octets, &port.to_be_bytes(), &[0, 22]].concat());
            for header in [text.as_bytes(), &binary] {
                prop_assert_eq!(read_all(header), (Ok(Some(SocketAddr::new(ip, port))), &b""[..]));
            }
        }
    }
}
