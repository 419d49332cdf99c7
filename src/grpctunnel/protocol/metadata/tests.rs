use proptest::prelude::*;

use super::*;

fn headers(entries: &[(&str, &[u8])]) -> HeaderMap {
    let entry =
        |(key, value): &(&str, &[u8])| (key.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value).unwrap());
    let mut headers = HeaderMap::new();
    for (key, value) in entries.iter().map(entry) {
        headers.append(key, value);
    }
    headers
}

fn metadata(entries: &[(&str, &[&str])]) -> Metadata {
    let values = |values: &[&str]| Values { val: values.iter().map(|value| (*value).to_owned()).collect() };
    Metadata { md: entries.iter().map(|(key, list)| ((*key).to_owned(), values(list))).collect() }
}

#[test]
fn reserved_names_can_be_searched() {
    assert!(RESERVED.is_sorted());
}

#[test]
fn binary_values_are_raw_in_the_tunnel() {
    let given = headers(&[("x-bin", b"AAFi"), ("x-bin", b"eA=="), ("x", b"AAFi")]);
    let expected = metadata(&[("x-bin", &["\0\u{1}b", "x"]), ("x", &["AAFi"])]);
    assert_eq!(from_headers(given), Ok(expected.clone()));
    assert_eq!(into_headers(expected), Ok(headers(&[("x", b"AAFi"), ("x-bin", b"AAFi"), ("x-bin", b"eA")])));
}

#[test]
fn joined_binary_values_come_apart() {
    let expected = metadata(&[("x-bin", &["a", "", "b"])]);
    assert_eq!(from_headers(headers(&[("x-bin", b"YQ, ,Yg")])), Ok(expected));
}

#[test]
fn value_that_cannot_be_said_names_its_key() {
    let error = from_headers(headers(&[("trace-bin", b"//79gA")])).unwrap_err();
    assert_eq!(error.to_string(), "the value of `trace-bin` is not UTF-8, and grpctunnel.v1 carries nothing else");
    let error = from_headers(headers(&[("name", b"\xff")])).unwrap_err();
    assert_eq!(error, MetadataError::NotUtf8 { key: "name".into() });
    let error = from_headers(headers(&[("trace-bin", b"?")])).unwrap_err();
    assert_eq!(error, MetadataError::NotBase64 { key: "trace-bin".into() });
}

#[test]
fn headers_of_the_transport_stay_behind_and_the_timeout_does_not() {
    let given = headers(&[
        ("te", b"trailers"),
        ("content-type", b"application/grpc"),
        ("user-agent", b"tonic"),
        ("host", b"here"),
        ("grpc-encoding", b"gzip"),
        ("grpc-accept-encoding", b"gzip"),
        ("grpc-status", b"0"),
        ("connection", b"x-mine"),
        ("x-mine", b"1"),
        ("grpc-timeout", b"5S"),
        ("authorization", b"Bearer x"),
    ]);
    assert_eq!(from_headers(given), Ok(metadata(&[("authorization", &["Bearer x"]), ("grpc-timeout", &["5S"])])));
}

/// The call may be a tunnel itself.
#[test]
fn negotiation_of_a_tunnel_in_the_tunnel_passes() {
    let negotiate = metadata(&[("grpctunnel-negotiate", &["on"])]);
    assert_eq!(from_headers(headers(&[("grpctunnel-negotiate", b"on")])), Ok(negotiate.clone()));
    assert_eq!(into_headers(negotiate), Ok(headers(&[("grpctunnel-negotiate", b"on")])));
}

#[test]
fn reserved_names_do_not_come_out_of_the_tunnel() {
    let given = metadata(&[
        (":path", &["/other"]),
        ("Content-Type", &["text/html"]),
        ("grpc-encoding", &["gzip"]),
        ("grpc-status", &["0"]),
        ("Te", &["gzip"]),
        ("X-Kept", &["1"]),
        ("none", &[]),
    ]);
    assert_eq!(into_headers(given.clone()), Ok(headers(&[("x-kept", b"1")])));
    assert_eq!(into_trailers(given), headers(&[("x-kept", b"1")]));
}

#[test]
fn what_is_no_header_is_an_error_and_is_left_out_of_trailers() {
    let key = metadata(&[("a b", &["1"]), ("c", &["2"])]);
    assert_eq!(into_headers(key.clone()), Err(MetadataError::Key { key: "a b".into() }));
    assert_eq!(into_trailers(key), headers(&[("c", b"2")]));
    let value = metadata(&[("a", &["1\n2"]), ("c", &["2"])]);
    assert_eq!(into_headers(value.clone()), Err(MetadataError::Value { key: "a".into() }));
    assert_eq!(into_trailers(value), headers(&[("c", b"2")]));
    assert_eq!(into_headers(metadata(&[("", &["1"])])), Err(MetadataError::Key { key: String::new() }));
}

#[test]
fn more_entries_than_a_header_map_has_room_for_are_an_error() {
    let values = Values { val: vec!["1".into()] };
    let many = Metadata { md: (0..40_000).map(|n| (format!("k{n}"), values.clone())).collect() };
    assert_eq!(into_headers(many.clone()), Err(MetadataError::TooMany));
    assert!(into_trailers(many).len() > 1000);
}

#[test]
fn size_is_that_of_http2() {
    assert_eq!(size(&Metadata::default()), 0);
    assert_eq!(size(&metadata(&[("key", &["value", ""])])), 3 + 5 + 32 + 3 + 32);
    assert_eq!(size(&metadata(&[("key", &[])])), 3 + 32);
}

proptest! {
    #[test]
    fn text_survives_both_ways(
        entries in proptest::collection::vec(("x-[a-z]{1,3}(-bin)?", "[ -~]{0,20}|\\PC{0,5}"), 0..10)
    ) {
        let mut given = Metadata::default();
        for (key, value) in entries {
            given.md.entry(key).or_insert_with(Values::default).val.push(value);
        }
        let headers = into_headers(given.clone()).unwrap();
        prop_assert_eq!(from_headers(headers), Ok(given));
    }

    #[test]
    fn no_metadata_panic(
        entries in proptest::collection::vec((any::<String>(), any::<Vec<String>>()), 0..10),
        bytes in proptest::collection::vec(("[a-z:-]{1,6}(-bin)?", any::<Vec<u8>>()), 0..10)
    ) {
        let given = Metadata { md: entries.into_iter().map(|(key, val)| (key, Values { val })).collect() };
        size(&given);
        into_trailers(given.clone());
        let _ = into_headers(given); // an error or not
        let mut headers = HeaderMap::new();
        for (key, value) in bytes {
            if let (Ok(key), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::from_bytes(&value)) {
                headers.append(key, value);
            }
        }
        let _ = from_headers(headers); // an error or not
    }
}
