//! The rules of the wire, one by one.

use super::from_client as c;
use super::from_server as s;
use super::*;

fn ok() -> Status {
    Status::default()
}

fn no_metadata() -> Metadata {
    Metadata::default()
}

// Settings and revisions.

#[test]
fn settings_come_first_and_only_where_both_sides_asked_for_them() {
    let mut server = Server::new(Config { window: 5000, ..Config::default() }, Negotiated::Yes);
    server.take([c::call_with(1, "nonsense", 2, 1000)]);
    let expected =
        ["-1 settings [0, 1, 2] 5000", "1 close InvalidArgument `nonsense is not a well-formed method name`"];
    assert_eq!(server.sent(), expected);
    assert!(Server::new(Config::default(), Negotiated::No).sent().is_empty());
}

#[test]
fn window_too_small_for_what_is_announced_is_not_granted() {
    let mut server = Server::new(Config { window: 1, ..Config::default() }, Negotiated::Yes);
    assert_eq!(server.sent(), ["-1 settings [0, 1, 2] 6"]);
    let config = Config { window: 0, newest: Revision::One, ..Config::default() };
    assert_eq!(Server::new(config, Negotiated::Yes).sent(), ["-1 settings [0, 1] 1"]);
}

#[test]
fn client_waits_for_settings() {
    let mut client = Client::new(Config::default(), Negotiated::Yes);
    assert_eq!(client.revision(), None);
    assert_eq!(client.open(METHOD, no_metadata()), Err(OpenError::NotReady));
    client.take([s::settings(-1, &[0, 1, 1000], 77)]);
    assert_eq!(client.revision(), Some(Revision::One));
    client.call();
    assert_eq!(client.sent(), ["1 new /test.Echo/Call revision 1 window 65536"]);
}

#[test]
fn without_negotiation_the_tunnel_is_of_revision_zero() {
    let mut client = Client::new(Config::default(), Negotiated::No);
    assert_eq!(client.revision(), Some(Revision::Zero));
    client.call();
    assert_eq!(client.sent(), ["1 new /test.Echo/Call revision 0 window 0"]);
    let mut server = Server::new(Config::default(), Negotiated::No);
    server.take([c::call_with(1, METHOD, 1, 1000)]);
    assert_eq!(server.sent(), ["1 close FailedPrecondition `server does not support protocol revision 1`"]);
}

#[test]
fn bad_settings_end_the_tunnel() {
    let fails = |frame| Client::new(Config::default(), Negotiated::Yes).receive(frame).unwrap_err();
    assert_eq!(fails(s::headers(1, &[])), TunnelError::NotSettings);
    assert_eq!(fails(s::unknown(-1)), TunnelError::NotSettings);
    assert_eq!(fails(s::settings(1, &[1], 100)), TunnelError::SettingsId(1));
    assert_eq!(fails(s::settings(-1, &[], 100)), TunnelError::NoCommonRevision { theirs: vec![] });
    assert_eq!(fails(s::settings(-1, &[3; 1000], 100)), TunnelError::NoCommonRevision { theirs: vec![3; 16] });
    assert_eq!(fails(s::settings(-1, &[0, 1], 0)), TunnelError::Window { window: 0, revision: Revision::One });
    assert_eq!(fails(s::settings(-1, &[1, 2], 5)), TunnelError::Window { window: 5, revision: Revision::Two });
}

#[test]
fn later_settings_end_the_tunnel_before_the_first_call_and_are_passed_over_after_it() {
    let mut client = client();
    assert_eq!(client.receive(s::settings(-1, &[1], 100)), Err(TunnelError::NeverCreated(-1)));
    client.call();
    client.sent();
    client.take([s::settings(-1, &[1], 100)]);
    assert_eq!(client.revision(), Some(Revision::Two));
}

#[test]
fn settings_on_a_live_call_end_that_call() {
    let (mut client, id) = client_in_call();
    client.take([s::settings(1, &[1], 100)]);
    assert_eq!(client.sent(), ["1 cancel"]);
    assert_eq!(client.read(id), ["end Internal `protocol error: unrecognized frame type`"]);
}

#[test]
fn call_of_a_later_revision_is_refused_and_its_id_is_recorded() {
    let mut server = server();
    server.take([c::call_with(1, METHOD, 3, 1000), c::message(1, 4, 4), c::half_close(1), c::call(2)]);
    assert_eq!(server.sent(), ["1 close FailedPrecondition `server does not support protocol revision 3`"]);
    assert_eq!(server.accept().unwrap().id, StreamId(2));
}

#[test]
fn call_with_a_window_too_small_is_refused() {
    let mut server = server();
    server.take([c::call_with(1, METHOD, 1, 0), c::call_with(2, METHOD, 2, 5), c::call_with(3, METHOD, 0, 0)]);
    let expected = [
        "1 close Internal `protocol error: a window of 0 bytes is too small for revision 1`",
        "2 close Internal `protocol error: a window of 5 bytes is too small for revision 2`",
    ];
    assert_eq!(server.sent(), expected);
    assert_eq!(server.calls(), 1);
}

// Stream ids.

#[test]
fn ids_rise_from_one_and_go_out_in_order() {
    let mut client = client();
    let first = client.call();
    client.half_close(first).unwrap();
    for id in 2..5 {
        assert_eq!(client.call(), StreamId(id));
    }
    client.cancel(StreamId(3));
    assert_eq!(client.call(), StreamId(5));
    let ids: Vec<_> = client.sent().iter().filter(|line| line.contains("new")).map(|l| l[..1].to_owned()).collect();
    assert_eq!(ids, ["1", "2", "4", "5"]);
}

#[test]
fn server_takes_id_zero_and_gaps() {
    let mut server = server();
    server.take([c::call(0), c::call(1), c::call(70), c::call(i64::MAX)]);
    assert_eq!(std::iter::from_fn(|| server.accept()).map(|call| call.id.0).collect::<Vec<_>>(), [0, 1, 70, i64::MAX]);
}

#[test]
fn id_that_was_used_ends_the_tunnel() {
    for id in [-1, -70, 3, 4, 5] {
        let mut server = server();
        server.take([c::call(4), c::call_with(5, "", 2, 1000), c::cancel(4)]);
        assert_eq!(server.receive(c::call(id)), Err(TunnelError::StreamIdUsed(id)), "{id}");
    }
}

#[test]
fn frame_of_a_call_that_never_was_ends_the_tunnel() {
    for frame in [c::message(5, 1, 1), c::more(5, 1), c::half_close(5), c::cancel(5), c::update(5, 1), c::unknown(5)] {
        let mut server = server();
        server.take([c::call(4)]);
        assert_eq!(server.receive(frame), Err(TunnelError::NeverCreated(5)));
    }
    for frame in [s::headers(2, &[]), s::message(2, 1, 1), s::close(2, None), s::update(2, 1), s::unknown(2)] {
        let (mut client, _) = client_in_call();
        assert_eq!(client.receive(frame), Err(TunnelError::NeverCreated(2)));
    }
}

#[test]
fn every_frame_before_the_first_call_ends_the_tunnel_of_a_client() {
    for id in [-1, 0, 1] {
        assert_eq!(client().receive(s::update(id, 1)), Err(TunnelError::NeverCreated(id)));
    }
}

#[test]
fn answer_to_a_call_that_was_not_sent_ends_the_tunnel() {
    let (mut client, _) = client_in_call();
    let second = client.call();
    assert_eq!(client.receive(s::close(second.0, None)), Err(TunnelError::NeverCreated(2)));
}

#[test]
fn late_frame_is_passed_over() {
    let mut server = server();
    server.take([c::call(7), c::cancel(7)]);
    server.sent();
    for id in [7, 6, 0, -1] {
        server.take([c::message(id, 1, 1), c::more(id, 9), c::half_close(id), c::cancel(id), c::unknown(id)]);
    }
    assert!(server.sent().is_empty());

    let (mut client, id) = client_in_call();
    client.cancel(id);
    assert_eq!(client.sent(), ["1 cancel"]);
    for id in [1, 0, -1] {
        client.take([s::headers(id, &[]), s::message(id, 9, 1), s::more(id, 1), s::close(id, None), s::unknown(id)]);
    }
    assert!(client.sent().is_empty());
}

#[test]
fn frames_after_the_end_of_a_call_are_passed_over_though_nobody_has_read_the_end() {
    let (mut client, id) = client_in_call();
    client.take([s::close(1, None), s::message(1, 4, 4), s::headers(1, &[]), s::close(1, Some(Status::default()))]);
    assert_eq!(client.read(id), ["end OK"]);
    assert_eq!(client.calls(), 0);
}

// The life of a call.

#[test]
fn canonical_exchange() {
    let (mut client, mut server) = (client(), server());
    let id = client.call();
    client.send(id, data(4)).unwrap();
    client.half_close(id).unwrap();
    let frames: Vec<_> = std::iter::from_fn(|| client.poll_frame()).collect();
    let shown: Vec<_> = frames.iter().map(Show::show).collect();
    assert_eq!(shown, ["1 new /test.Echo/Call revision 2 window 100", "1 message 4 of 4", "1 half-close"]);

    server.take(frames);
    let call = server.accept().unwrap();
    assert_eq!(call.path, METHOD);
    assert_eq!(server.read(1), ["message 4 of 4", "HalfClosed"]);
    server.headers(call.id, no_metadata()).unwrap();
    server.send(call.id, data(4)).unwrap();
    assert_eq!(server.close(call.id, ok(), no_metadata()), Closing::Now);
    let frames: Vec<_> = std::iter::from_fn(|| server.poll_frame()).collect();
    let shown: Vec<_> = frames.iter().map(Show::show).collect();
    assert_eq!(shown, ["1 headers []", "1 message 4 of 4", "1 close OK"]);
    assert_eq!(server.calls(), 0);

    client.take(frames);
    assert_eq!(client.read(id), ["headers []", "message 4 of 4", "end OK"]);
    assert_eq!((client.calls(), client.sent().len()), (0, 0));
}

#[test]
fn ok_is_an_absent_status() {
    let mut server = server();
    server.take([c::call(1), c::half_close(1)]);
    server.close(StreamId(1), ok(), no_metadata());
    let Some(ServerFrame::CloseStream(close)) = server.poll_frame().unwrap().frame else { panic!("no close") };
    assert_eq!(close, CloseStream { response_trailers: Some(no_metadata()), status: None });
}

#[test]
fn status_that_says_ok_and_one_that_is_absent_are_the_same() {
    for status in [None, Some(Status::default())] {
        let (mut client, id) = client_in_call();
        client.take([s::close(1, status)]);
        assert_eq!(client.read(id), ["end OK"]);
    }
}

#[test]
fn headers_that_are_absent_come_before_messages_all_the_same() {
    let (mut client, id) = client_in_call();
    client.take([s::message(1, 1, 1), s::headers(1, &[("late", "1")]), s::close(1, None)]);
    assert_eq!(client.read(id)[0], "headers [\"late\"]");
    let (mut client, id) = client_in_call();
    client.take([s::message(1, 1, 1)]);
    assert_eq!(client.read(id), ["headers []", "message 1 of 1"]);
    client.take([s::headers(1, &[("late", "1")]), s::close(1, None)]);
    assert_eq!(client.read(id), ["end OK"]);
}

#[test]
fn second_headers_are_passed_over() {
    let (mut client, id) = client_in_call();
    client.take([s::headers(1, &[("a", "1")]), s::headers(1, &[("b", "1")]), s::close(1, None)]);
    assert_eq!(client.read(id), ["headers [\"a\"]", "end OK"]);
}

#[test]
fn messages_before_the_end_are_delivered_before_it() {
    let (mut client, id) = client_in_call();
    let trailers = metadata(&[("x", "1")]);
    let close = CloseStream { response_trailers: Some(trailers.clone()), status: None };
    client.take([s::message(1, 3, 3), s::frame(1, ServerFrame::CloseStream(close))]);
    assert_eq!(client.calls(), 1);
    assert_eq!(client.poll_event(id), Some(ResponseEvent::Headers(no_metadata())));
    assert_eq!(client.poll_event(id), Some(ResponseEvent::Message { size: 3, data: data(3) }));
    assert_eq!(client.poll_event(id), Some(ResponseEvent::End { status: ok(), trailers }));
    assert!(matches!(client.poll_event(id), Some(ResponseEvent::End { .. })), "also of a call that is forgotten");
}

#[test]
fn empty_message_is_sent_and_read() {
    let (mut client, id) = client_in_call();
    client.send(id, Bytes::new()).unwrap();
    client.half_close(id).unwrap();
    assert_eq!(client.sent(), ["1 message 0 of 0", "1 half-close"]);
    let mut server = server();
    server.take([c::call(1), c::message(1, 0, 0), c::message(1, 0, 0), c::half_close(1)]);
    assert_eq!(server.read(1), ["message 0 of 0", "message 0 of 0", "HalfClosed"]);
}

#[test]
fn server_without_headers_of_its_own_sends_empty_ones_before_the_first_message() {
    let mut server = server();
    server.take([c::call(1)]);
    server.send(StreamId(1), data(1)).unwrap();
    server.headers(StreamId(1), metadata(&[("late", "1")])).unwrap();
    assert_eq!(server.sent(), ["1 headers []", "1 message 1 of 1"]);
}

#[test]
fn failed_call_needs_no_headers() {
    let mut server = server();
    server.take([c::call(1)]);
    let id = server.accept().unwrap().id;
    assert_eq!(server.close(id, Status::new(Code::NotFound, "gone"), no_metadata()), Closing::Now);
    assert_eq!(server.sent(), ["1 close NotFound `gone`"]);
}

#[test]
fn writer_hears_that_a_call_is_over() {
    let (mut client, id) = client_in_call();
    client.half_close(id).unwrap();
    assert_eq!(client.send(id, data(1)), Err(SendError::HalfClosed));
    assert_eq!(client.half_close(id), Err(SendError::HalfClosed));
    client.take([s::close(1, None)]);
    assert_eq!(client.send(id, data(1)), Err(SendError::Over));
    client.cancel(id);
    assert_eq!(client.send(id, data(1)), Err(SendError::Over));
    assert!(client.sent().iter().all(|line| line == "1 half-close"), "a call that has ended is not cancelled");
    let mut server = server();
    server.take([c::call(1)]);
    server.close(StreamId(1), ok(), no_metadata());
    assert_eq!(server.send(StreamId(1), data(1)), Err(SendError::Over));
    assert_eq!(server.headers(StreamId(2), no_metadata()), Err(SendError::Over));
}

#[test]
fn message_in_pieces_is_checked() {
    let (mut client, id) = client_in_call();
    assert_eq!(client.push(id, data(1)), Err(SendError::Excess(1)));
    client.start_message(id, 3).unwrap();
    assert!(client.sent().is_empty(), "nothing to send yet");
    client.push(id, data(2)).unwrap();
    assert_eq!(client.push(id, data(2)), Err(SendError::Excess(1)));
    assert_eq!(client.start_message(id, 1), Err(SendError::Unfinished(1)));
    assert_eq!(client.half_close(id), Err(SendError::Unfinished(1)));
    client.push(id, Bytes::new()).unwrap();
    client.push(id, data(1)).unwrap();
    client.half_close(id).unwrap();
    assert_eq!(client.sent(), ["1 message 2 of 3", "1 more 1", "1 half-close"]);
}

#[test]
fn response_that_stops_in_the_middle_of_a_message_does_not_end_with_ok() {
    let mut server = server();
    server.take([c::call(1), c::half_close(1)]);
    let id = server.accept().unwrap().id;
    server.start_message(id, 3).unwrap();
    server.push(id, data(1)).unwrap();
    server.close(id, ok(), no_metadata());
    let expected =
        ["1 headers []", "1 message 1 of 3", "1 close Internal `protocol error: the last message is not complete`"];
    assert_eq!(server.sent(), expected);
}

// Messages.

#[test]
fn any_split_is_taken() {
    let mut server = server();
    let frames = [c::message(1, 6, 0), c::more(1, 1), c::more(1, 0), c::more(1, 3), c::more(1, 2), c::more(1, 0)];
    server.take([c::call(1)]);
    server.take(frames);
    assert_eq!(server.read(1), ["message 6 of 6"], "what is small is gathered");
}

#[test]
fn chunk_of_the_whole_window_is_taken() {
    let mut server = server_with(Config { window: 100_005, start: 100_005, ..Config::default() });
    server.take([c::call(1), c::message(1, 100_000, 100_000)]);
    assert_eq!(server.read(1), ["message 100000 of 100000"]);
}

/// What breaks the framing of a request, and what it ends with.
fn bad_framing() -> [(&'static str, Vec<ClientToServer>); 5] {
    [
        ("a message began before the one before was complete", vec![c::message(1, 4, 3), c::message(1, 1, 1)]),
        ("more data than the message was to have", vec![c::more(1, 1)]),
        ("more data than the message was to have", vec![c::message(1, 4, 3), c::more(1, 2)]),
        ("more data than the message was to have", vec![c::message(1, 1, 2)]),
        ("data after half-close", vec![c::half_close(1), c::message(1, 1, 1)]),
    ]
}

#[test]
fn bad_framing_ends_that_call_with_invalid_argument_at_a_server() {
    for (text, frames) in bad_framing() {
        let mut server = server();
        server.take([c::call(1), c::call(2)]);
        server.take(frames);
        assert_eq!(server.sent(), [format!("1 close InvalidArgument `protocol error: {text}`")]);
        assert_eq!(server.read(1), ["Cancelled"]);
        assert_eq!(server.accept().unwrap().id, StreamId(2));
    }
}

#[test]
fn bad_framing_ends_that_call_with_internal_and_cancel_at_a_client() {
    let cases = [
        ("a message began before the one before was complete", vec![s::message(1, 4, 3), s::message(1, 1, 1)]),
        ("more data than the message was to have", vec![s::more(1, 1)]),
        ("more data than the message was to have", vec![s::message(1, 4, 3), s::more(1, 2)]),
        ("more data than the message was to have", vec![s::message(1, 1, 2)]),
        ("unrecognized frame type", vec![s::unknown(1)]),
    ];
    for (text, frames) in cases {
        let (mut client, id) = client_in_call();
        client.send(id, data(50)).unwrap();
        client.take(frames);
        assert_eq!(client.sent(), ["1 cancel"], "and what was written is not sent");
        assert_eq!(client.read(id), [format!("end Internal `protocol error: {text}`")]);
    }
}

#[test]
fn truncated_request_is_an_error() {
    let mut server = server();
    server.take([c::call(1), c::message(1, 4, 3), c::half_close(1)]);
    assert_eq!(server.sent(), ["1 close InvalidArgument `protocol error: the last message is not complete`"]);
}

#[test]
fn truncated_response_is_an_error_and_the_servers_own_error_stands() {
    let (mut client, id) = client_in_call();
    client.take([s::message(1, 4, 3), s::close(1, None)]);
    let expected = ["headers []", "message 3 of 4", "end Internal `protocol error: the last message is not complete`"];
    assert_eq!(client.read(id), expected);
    let (mut client, id) = client_in_call();
    client.take([s::message(1, 4, 3), s::close(1, Some(Status::new(Code::Aborted, "why")))]);
    assert_eq!(client.read(id).last().unwrap(), "end Aborted `why`");
    assert!(client.sent().is_empty());
}

#[test]
fn message_above_the_limit_ends_that_call() {
    let mut server = server_with(Config { max_message: 10, ..Config::default() });
    server.take([c::call(1), c::message(1, 10, 10), c::call(2), c::message(2, u32::MAX, 1)]);
    let text = "a message of 4294967295 bytes is larger than the 10 that are accepted";
    assert_eq!(server.sent(), [format!("2 close ResourceExhausted `{text}`")]);
    let mut client = client_with(Config { max_message: 10, ..Config::default() });
    let id = client.call();
    client.sent();
    client.take([s::message(1, u32::MAX, 1)]);
    assert_eq!(client.sent(), ["1 cancel"]);
    assert_eq!(client.read(id), [format!("end ResourceExhausted `{text}`")]);
}

// Flow control.

#[test]
fn window_exceeded_ends_that_call() {
    let text = "flow control window exceeded";
    for (revision, frames) in [
        (1, vec![c::message(1, 200, 101)]),
        (1, vec![c::message(1, 200, 60), c::more(1, 41)]),
        (2, vec![c::message(1, 96, 96)]),
        (2, (0..21).map(|_| c::message(1, 0, 0)).collect()),
    ] {
        let mut server = server();
        server.take([c::call_with(1, METHOD, revision, 1000)]);
        server.take(frames);
        assert_eq!(server.sent(), [format!("1 close ResourceExhausted `{text}`")]);
    }
    let (mut client, id) = client_in_call();
    client.take([s::message(1, 95, 95)]);
    assert!(client.sent().is_empty());
    client.take([s::message(1, 1, 1)]);
    assert_eq!(client.sent(), ["1 cancel"]);
    assert_eq!(client.read(id), [format!("end ResourceExhausted `{text}`")]);
}

#[test]
fn whole_window_may_be_used() {
    for (revision, size) in [(1, 100), (2, 95)] {
        let mut server = server();
        server.take([c::call_with(1, METHOD, revision, 1000), c::message(1, size, size as usize)]);
        assert!(server.sent().is_empty());
    }
}

#[test]
fn empty_messages_cost_nothing_in_revision_one_and_five_bytes_in_two() {
    let mut server = server();
    server.take([c::call_with(1, METHOD, 1, 1000), c::call_with(2, METHOD, 2, 1000)]);
    server.take((0..20).map(|_| c::message(2, 0, 0)));
    server.take((0..100_000).map(|_| c::message(1, 0, 0)));
    assert!(server.sent().is_empty());
    assert!(server.streams().held() < 100, "a flood of empty messages is held as their number");
}

#[test]
fn credit_is_for_what_was_read_and_comes_in_batches() {
    let mut server = server();
    server.take([c::call(1)]);
    let id = server.accept().unwrap().id;
    server.take([c::message(1, 80, 15), c::more(1, 4)]);
    assert!(server.sent().is_empty(), "nothing was read");
    assert!(server.poll_event(id).is_some());
    assert!(server.sent().is_empty(), "less than a quarter was read");
    server.take([c::more(1, 10)]);
    assert!(server.poll_event(id).is_some());
    assert_eq!(server.sent(), ["1 update 34"], "in the middle of a message");
}

#[test]
fn sender_without_window_gets_what_little_was_read() {
    for (revision, rest) in [(1, 90), (2, 80)] {
        let mut server = server();
        server.take([c::call_with(1, METHOD, revision, 1000), c::message(1, 200, 10)]);
        let id = server.accept().unwrap().id;
        assert!(server.poll_event(id).is_some());
        assert!(server.sent().is_empty());
        server.take([c::more(1, rest)]);
        let read = if revision == 1 { 10 } else { 15 };
        assert_eq!(server.sent(), [format!("1 update {read}")]);
    }
}

#[test]
fn message_larger_than_the_window_passes() {
    let mut server = server();
    server.take([c::call_with(1, METHOD, 1, 1000), c::message(1, 1000, 100)]);
    for _ in 0..9 {
        server.read(1);
        assert_eq!(server.sent(), ["1 update 100"]);
        server.take([c::more(1, 100)]);
    }
    server.read(1);
    server.take([c::half_close(1)]);
    assert_eq!(server.read(1), ["HalfClosed"]);
    assert!(server.sent().is_empty(), "after half-close nothing is granted");
}

#[test]
fn one_byte_of_window_is_used() {
    let mut client = Client::new(Config::default(), Negotiated::Yes);
    client.take([s::settings(-1, &[1], 1)]);
    let id = client.call();
    client.send(id, data(3)).unwrap();
    client.half_close(id).unwrap();
    client.poll_frame();
    assert_eq!(client.sent(), ["1 message 1 of 3"]);
    client.take([s::update(1, 0)]);
    assert!(client.sent().is_empty());
    client.take([s::update(1, 1)]);
    assert_eq!(client.sent(), ["1 more 1"]);
    client.take([s::update(1, 1)]);
    assert_eq!(client.sent(), ["1 more 1", "1 half-close"]);
}

#[test]
fn message_of_revision_two_begins_with_six_bytes_of_window_or_five() {
    let mut client = Client::new(Config::default(), Negotiated::Yes);
    client.take([s::settings(-1, &[2], 11)]);
    let id = client.call();
    client.send(id, data(3)).unwrap();
    client.send(id, data(3)).unwrap();
    client.send(id, Bytes::new()).unwrap();
    client.poll_frame();
    assert_eq!(client.sent(), ["1 message 3 of 3"]);
    client.take([s::update(1, 2)]);
    assert!(client.sent().is_empty(), "five are enough for an empty message only");
    client.take([s::update(1, 1)]);
    assert_eq!(client.sent(), ["1 message 1 of 3"]);
    client.take([s::update(1, 6)]);
    assert_eq!(client.sent(), ["1 more 2"]);
    client.take([s::update(1, 1)]);
    assert_eq!(client.sent(), ["1 message 0 of 0"]);
}

#[test]
fn window_may_be_granted_beyond_32_bits() {
    let (mut client, id) = client_in_call();
    client.take((0..3).map(|_| s::update(1, u32::MAX)));
    client.send(id, data(3000)).unwrap();
    assert_eq!(client.sent().len(), 1);
}

#[test]
fn chunks_become_larger_with_the_window_and_stay_so() {
    let (mut client, id) = client_in_call();
    client.take([s::update(1, 9005)]);
    client.send(id, data(2000)).unwrap();
    client.send(id, data(8000)).unwrap();
    let expected = ["1 message 2000 of 2000", "1 message 2501 of 8000", "1 more 2501", "1 more 2501", "1 more 492"];
    assert_eq!(client.sent(), expected, "a quarter of 10,005 at most");
    let (mut client, id) = client_in_call();
    client.send(id, data(995)).unwrap();
    client.sent();
    client.take([s::update(1, 3000)]);
    client.send(id, data(2000)).unwrap();
    assert_eq!(client.sent(), ["1 message 1024 of 2000", "1 more 976"], "but 1 KiB is not too much");
}

/// A server whose calls begin with 100 bytes and may grow to 1,000, out of half of `max_unread`.
fn growing(max_unread: usize) -> Server {
    server_with(Config { start: 100, window: 1000, max_unread, ..Config::default() })
}

#[test]
fn who_reads_is_granted_as_much_again_until_the_window_is_whole() {
    let mut server = growing(1 << 20);
    let mut granted = 100;
    server.take([c::call_with(1, METHOD, 1, 1000)]);
    for expected in [200, 400, 800, 1000, 1000] {
        server.take([c::message(1, granted, granted as usize)]);
        assert!(server.sent().is_empty(), "nothing was read");
        server.read(1);
        assert_eq!(server.sent(), [format!("1 update {expected}")]);
        granted = expected;
    }
    assert_eq!(server.streams().promised(), 900);
    server.take([c::message(1, 700, 700), c::half_close(1)]);
    assert_eq!(server.streams().promised(), 600, "of what the peer has sent, that which is beyond the start");
    server.read(1);
    assert_eq!(server.streams().promised(), 0);
}

#[test]
fn message_that_does_not_fit_is_let_in_at_once() {
    let mut server = growing(1 << 20);
    server.take([c::call_with(1, METHOD, 1, 1000), c::message(1, 450, 20)]);
    assert_eq!(server.sent(), ["1 update 350"], "80 were left");
    assert!(server.sent().is_empty(), "once");
    server.take([c::more(1, 430), c::call_with(2, METHOD, 1, 1000), c::message(2, 5000, 20)]);
    assert_eq!(server.sent(), ["2 update 900"], "no more than the whole window");
}

#[test]
fn windows_grow_no_more_than_there_is_room_for_and_the_room_comes_back() {
    let mut server = growing(16 * 900);
    server.take((1..=3).flat_map(|id| [c::call_with(id, METHOD, 1, 1000), c::message(id, 5000, 100)]));
    assert_eq!(server.sent(), ["1 update 900", "2 update 787", "3 update 689"], "an eighth of what is left");
    assert_eq!(server.streams().promised(), 900 + 787 + 689);
    server.take([c::cancel(1)]);
    server.refuse(StreamId(2), ok());
    assert_eq!(server.streams().promised(), 689);
    server.discard(StreamId(3));
    assert_eq!(server.streams().promised(), 0, "what is dropped as it comes takes no memory");
}

#[test]
fn without_any_room_calls_go_on_with_what_they_began_with() {
    let mut server = growing(0);
    server.take([c::call_with(1, METHOD, 1, 1000), c::message(1, 1000, 100)]);
    assert!(server.sent().is_empty());
    for _ in 0..9 {
        server.read(1);
        assert_eq!(server.sent(), ["1 update 100"]);
        server.take([c::more(1, 100)]);
    }
}

#[test]
fn revision_zero_has_no_windows() {
    let mut client = Client::new(Config { window: 100, ..Config::default() }, Negotiated::No);
    let id = client.call();
    client.send(id, data(200_000)).unwrap();
    assert_eq!(client.sent()[1..], ["1 message 65536 of 200000", "1 more 65536", "1 more 65536", "1 more 3392"]);
    client.take([s::update(1, 5), s::message(1, 50_000, 50_000)]);
    assert!(client.is_overfull(), "only the carrier can be held up");
    client.read(id);
    assert!(!client.is_overfull());
    assert!(client.sent().is_empty(), "and nothing is granted");
}

#[test]
fn one_call_does_not_wait_for_the_window_of_another() {
    let mut client = client();
    let (slow, fast) = (client.call(), client.call());
    client.send(slow, data(5000)).unwrap();
    client.send(fast, data(10)).unwrap();
    let sent = client.sent();
    assert!(sent.contains(&"1 message 995 of 5000".into()) && sent.contains(&"2 message 10 of 10".into()), "{sent:?}");
}

#[test]
fn data_take_turns() {
    let mut client = Client::new(Config { max_chunk: 10, ..Config::default() }, Negotiated::No);
    for _ in 0..3 {
        let id = client.call();
        client.send(id, data(20)).unwrap();
    }
    let ids: Vec<_> = client.sent()[3..].iter().map(|line| line[..1].to_owned()).collect();
    assert_eq!(ids, ["1", "2", "3", "1", "2", "3"]);
}

#[test]
fn writer_waits_while_as_much_is_queued_and_is_woken_once() {
    let mut client = client_with(Config { max_queued: 100, ..Config::default() });
    let id = client.call();
    assert!(client.has_room(id));
    client.send(id, data(2000)).unwrap();
    assert!(!client.has_room(id));
    client.sent();
    assert!(client.woken().is_empty());
    client.take([s::update(1, 500)]);
    client.sent();
    assert!(client.woken().is_empty());
    client.take([s::update(1, 500)]);
    client.sent();
    assert_eq!(client.woken(), [Woken { id, reader: false, writer: true }]);
    assert!(client.has_room(id) && client.woken().is_empty());
}

#[test]
fn reader_is_woken_only_if_it_was_told_that_there_is_nothing() {
    let mut server = server();
    server.take([c::call(1), c::message(1, 1, 1)]);
    let id = server.accept().unwrap().id;
    assert!(server.woken().is_empty());
    server.read(1);
    server.take([c::message(1, 2, 1), c::more(1, 1)]);
    assert_eq!(server.woken(), [Woken { id, reader: true, writer: false }]);
    server.take([c::half_close(1)]);
    assert!(server.woken().is_empty());
}

// Refusals.

#[test]
fn method_names_that_are_none_are_refused() {
    for (name, quoted) in [("", ""), ("Method", "Method"), ("/", "/"), ("a/b c\n", "a/b c\\n")] {
        let mut server = server();
        server.take([c::call_with(1, name, 2, 1000), c::message(1, 1, 1), c::half_close(1), c::call(2)]);
        assert_eq!(server.sent(), [format!("1 close InvalidArgument `{quoted} is not a well-formed method name`")]);
        assert_eq!(server.accept().unwrap().id, StreamId(2));
    }
    let mut server = server();
    server.take([c::call_with(1, "test.Echo/Call", 2, 1000)]);
    assert_eq!(server.accept().unwrap().path, METHOD);
}

#[test]
fn client_never_sends_a_method_name_that_is_none() {
    for name in ["", "/", "Method", "/a/b?c"] {
        assert_eq!(client().open(name, no_metadata()), Err(OpenError::Method(name.into())));
    }
}

#[test]
fn calls_beyond_the_limit_are_refused_until_others_end() {
    let mut server = server_with(Config { max_streams: 2, ..Config::default() });
    server.take([c::call(1), c::call(2), c::call(3), c::message(3, 1, 1), c::half_close(3)]);
    assert_eq!(server.sent(), ["3 close ResourceExhausted `the tunnel has 2 calls already`"]);
    server.close(StreamId(1), ok(), no_metadata());
    server.take([c::call(4)]);
    assert_eq!(server.sent().len(), 2, "a call whose end is not sent yet counts");
    server.take([c::call(5)]);
    assert!(server.sent().is_empty());
}

#[test]
fn draining_server_refuses_calls_and_finishes_those_it_has() {
    let mut server = server();
    server.take([c::call(1)]);
    server.drain();
    server.take([c::call(2), c::message(2, 4, 4), c::half_close(2), c::half_close(1)]);
    assert_eq!(server.sent(), ["2 close Unavailable `server is shutting down`"]);
    assert_eq!(server.accept().unwrap().id, StreamId(1));
    assert_eq!(server.read(1), ["HalfClosed"]);
    server.close(StreamId(1), ok(), no_metadata());
    assert_eq!(server.sent(), ["1 close OK"]);
    assert_eq!(server.calls(), 0);
}

#[test]
fn metadata_above_the_limit_end_that_call() {
    let text = "metadata of more than 100 bytes";
    let big = metadata(&[("key", &"x".repeat(66))]);
    let config = Config { max_metadata: 100, ..Config::default() };
    let mut server = server_with(config.clone());
    let ClientToServer { frame: Some(ClientFrame::NewStream(mut stream)), .. } = c::call(1) else { panic!("no call") };
    stream.request_headers = Some(big.clone());
    server.take([c::frame(1, ClientFrame::NewStream(stream))]);
    assert_eq!(server.sent(), [format!("1 close ResourceExhausted `{text}`")]);

    let mut client = client_with(config);
    let calls = [client.call(), client.call(), client.call()];
    client.sent();
    let close = |trailers, status| ServerFrame::CloseStream(CloseStream { response_trailers: trailers, status });
    client.take([
        s::frame(1, ServerFrame::ResponseHeaders(big.clone())),
        s::frame(2, close(Some(big), None)),
        s::frame(3, close(None, Some(Status::new(Code::Aborted, "x".repeat(100))))),
    ]);
    assert_eq!(client.sent(), ["1 cancel"], "the others were ended by the server");
    for id in calls {
        assert_eq!(client.read(id), [format!("end ResourceExhausted `{text}`")]);
    }
}

#[test]
fn unknown_frame_ends_that_call() {
    let mut server = server();
    server.take([c::call(1), c::unknown(1)]);
    assert_eq!(server.sent(), ["1 close Internal `protocol error: unrecognized frame type`"]);
}

// Ends.

#[test]
fn cancelled_call_is_closed_at_once_while_its_handler_runs() {
    let mut server = server();
    server.take([c::call(1), c::message(1, 1, 1)]);
    let id = server.accept().unwrap().id;
    server.send(id, data(50)).unwrap();
    server.take([c::cancel(1)]);
    assert_eq!(server.woken(), [Woken { id, reader: true, writer: true }]);
    assert_eq!(server.sent(), ["1 close Cancelled `the caller has given up`"], "and nothing of what was written");
    assert_eq!(server.read(1), ["Cancelled"]);
    assert_eq!(server.send(id, data(1)), Err(SendError::Over));
    assert_eq!(server.close(id, ok(), no_metadata()), Closing::Now);
    assert!(server.sent().is_empty());
}

#[test]
fn cancel_comes_after_half_close_too() {
    let mut server = server();
    server.take([c::call(1), c::half_close(1), c::cancel(1)]);
    assert_eq!(server.sent().len(), 1);
    assert_eq!(server.calls(), 0);
}

#[test]
fn call_that_was_given_up_before_it_was_accepted_is_not_told_of() {
    let mut server = server();
    server.take([c::call(1), c::call(2), c::cancel(1)]);
    assert_eq!(server.accept().unwrap().id, StreamId(2));
    assert!(server.accept().is_none() && server.woken().is_empty());
}

#[test]
fn call_that_was_cancelled_before_it_was_sent_leaves_nothing() {
    let mut client = client();
    let id = client.call();
    client.send(id, data(5)).unwrap();
    assert!(!client.was_sent(id));
    client.cancel(id);
    assert!(client.sent().is_empty());
    assert_eq!((client.calls(), client.streams().held()), (0, 0));
}

#[test]
fn early_ok_of_what_looks_like_client_streaming_waits_for_half_close() {
    let mut server = server();
    server.take([c::call(1)]);
    let id = server.accept().unwrap().id;
    server.send(id, data(1)).unwrap();
    assert_eq!(server.close(id, ok(), no_metadata()), Closing::Held);
    assert_eq!(server.sent(), ["1 headers []", "1 message 1 of 1"]);
    server.take([c::message(1, 90, 90)]);
    assert_eq!(server.sent(), ["1 update 95"], "the caller gets to the end of its request");
    server.take([c::message(1, 1, 1), c::half_close(1)]);
    assert_eq!(server.sent(), ["1 close OK"]);
}

#[test]
fn held_end_is_released() {
    let mut server = server();
    server.take([c::call(1)]);
    server.send(StreamId(1), data(1)).unwrap();
    assert_eq!(server.close(StreamId(1), ok(), no_metadata()), Closing::Held);
    server.sent();
    server.release(StreamId(1));
    assert_eq!(server.sent(), ["1 close OK"]);
}

#[test]
fn early_error_and_early_ok_after_other_than_one_message_do_not_wait() {
    for (messages, code, text) in [(1, Code::Aborted, "Aborted `x`"), (0, Code::Ok, "OK"), (2, Code::Ok, "OK")] {
        let mut server = server();
        server.take([c::call(1)]);
        for _ in 0..messages {
            server.send(StreamId(1), data(1)).unwrap();
        }
        assert_eq!(server.close(StreamId(1), Status::new(code, "x"), no_metadata()), Closing::Now);
        assert_eq!(server.sent().last().unwrap(), &format!("1 close {text}"));
    }
}

#[test]
fn caller_that_sends_on_after_an_early_end_is_not_held_up() {
    let mut server = server();
    server.take([c::call_with(1, METHOD, 2, 10), c::message(1, 90, 90)]);
    server.send(StreamId(1), data(50)).unwrap();
    server.close(StreamId(1), Status::new(Code::Aborted, "x"), no_metadata());
    assert_eq!(server.sent(), ["1 headers []", "1 update 95", "1 message 5 of 50"]);
    server.take([c::message(1, 90, 90)]);
    assert_eq!(server.sent(), ["1 update 95"]);
}

/// An update was due, and is not any more: what is due then is looked at anew.
#[test]
fn end_does_not_overtake_data_that_wait_for_window() {
    let mut server = server();
    server.take([c::call_with(1, METHOD, 2, 10)]);
    server.send(StreamId(1), data(50)).unwrap();
    assert_eq!(server.sent(), ["1 headers []", "1 message 5 of 50"]);
    server.take([c::message(1, 90, 90)]);
    server.close(StreamId(1), Status::new(Code::Aborted, "x"), no_metadata());
    server.take([c::half_close(1)]);
    assert!(server.sent().is_empty(), "45 bytes of the message are to come before the end");
    server.take([c::update(1, 44)]);
    assert_eq!(server.sent(), ["1 more 44"]);
    server.take([c::update(1, 1)]);
    assert_eq!(server.sent(), ["1 more 1", "1 close Aborted `x`"]);
}

#[test]
fn half_close_does_not_overtake_data_that_wait_for_window() {
    let mut client = client_with(Config { window: 100, ..Config::default() });
    let id = client.call();
    client.send(id, data(1500)).unwrap();
    client.half_close(id).unwrap();
    assert_eq!(client.sent()[1..], ["1 message 995 of 1500"]);
    client.take([s::message(1, 90, 90)]);
    client.read(id);
    assert_eq!(client.sent(), ["1 update 95"], "and not the end, though the call has something to say");
    client.take([s::update(1, 504)]);
    assert_eq!(client.sent(), ["1 more 504"]);
    client.take([s::update(1, 1)]);
    assert_eq!(client.sent(), ["1 more 1", "1 half-close"]);
}

#[test]
fn driver_is_told_when_the_end_of_a_call_was_sent() {
    let mut server = server();
    server.take([c::call(1)]);
    let id = server.accept().unwrap().id;
    server.close(id, Status::new(Code::Aborted, "x"), no_metadata());
    assert!(!server.is_over(id) && server.woken().is_empty());
    server.sent();
    assert!(server.is_over(id));
    assert_eq!(server.woken(), [Woken { id, reader: true, writer: true }]);
}

#[test]
fn what_is_wrong_with_a_request_that_was_answered_does_not_spoil_the_answer() {
    for frame in [c::message(1, 1, 2), c::more(1, 50), c::message(1, 5000, 5000), c::half_close(1)] {
        let mut server = server();
        server.take([c::call_with(1, METHOD, 2, 10), c::message(1, 4, 1)]);
        server.send(StreamId(1), data(10)).unwrap();
        server.close(StreamId(1), Status::new(Code::Aborted, "x"), no_metadata());
        server.take([frame, c::update(1, 10)]);
        assert_eq!(server.sent().last().unwrap(), "1 close Aborted `x`");
    }
}

#[test]
fn reader_that_outlives_its_handler_is_told_of_the_end() {
    let mut server = server();
    server.take([c::call(1)]);
    let id = server.accept().unwrap().id;
    server.read(1);
    server.close(id, ok(), no_metadata());
    assert!(server.woken().is_empty());
    server.sent();
    assert_eq!(server.woken(), [Woken { id, reader: true, writer: true }]);
    assert_eq!(server.read(1), ["Cancelled"]);
}

#[test]
fn discarded_request_is_granted_again() {
    let mut server = server();
    server.take([c::call(1), c::message(1, 80, 40)]);
    assert!(server.accept().is_some());
    server.discard(StreamId(1));
    assert_eq!((server.sent(), server.streams().held()), (vec!["1 update 45".to_owned()], 0));
    server.take([c::more(1, 40), c::half_close(1)]);
    assert_eq!(server.read(1), ["HalfClosed"]);
}

#[test]
fn refused_call_drops_what_was_written() {
    let mut server = server();
    server.take([c::call(1)]);
    let id = server.accept().unwrap().id;
    server.send(id, data(5)).unwrap();
    server.refuse(id, Status::new(Code::DeadlineExceeded, "too late"));
    assert_eq!(server.sent(), ["1 close DeadlineExceeded `too late`"]);
}

#[test]
fn lost_tunnel_ends_every_call_after_what_had_come() {
    let (mut client, first) = client_in_call();
    let second = client.call();
    assert!(client.was_sent(first) && !client.was_sent(second));
    client.take([s::message(1, 1, 1)]);
    assert_eq!(client.read(second), Vec::<String>::new());
    client.close();
    assert_eq!(client.woken(), [Woken { id: second, reader: true, writer: false }]);
    assert_eq!(client.read(first), ["headers []", "message 1 of 1", "lost"]);
    assert_eq!(client.read(second), ["lost"]);
    assert_eq!(client.open(METHOD, no_metadata()), Err(OpenError::Closed));
    assert_eq!((client.calls(), client.sent().len()), (0, 0));
    client.take([s::close(9, None)]);

    let mut server = server();
    server.take([c::call(1), c::call(2)]);
    let id = server.accept().unwrap().id;
    server.close_tunnel();
    assert_eq!(server.woken(), [Woken { id, reader: true, writer: true }]);
    assert_eq!((server.calls(), server.sent().len(), server.read(1)), (0, 0, vec!["Cancelled".into()]));
    assert!(server.accept().is_none());
    server.take([c::half_close(9)]);
}

#[test]
fn call_that_had_ended_before_the_tunnel_was_lost_keeps_its_end() {
    let (mut client, id) = client_in_call();
    client.take([s::close(1, None)]);
    client.close();
    assert_eq!(client.read(id), ["end OK"]);
}

// Floods.

#[test]
fn flood_of_refused_calls_stops_the_reading_of_the_carrier_and_leaves_nothing() {
    let mut server = server_with(Config { max_streams: 0, ..Config::default() });
    for id in 0..1024 {
        assert!(!server.is_overfull());
        server.take([c::call(id)]);
    }
    assert!(server.is_overfull());
    assert_eq!(server.sent().len(), 1024);
    assert!(!server.is_overfull());
    assert_eq!((server.calls(), server.streams().in_lines(), server.streams().held()), (0, 0, 0));
}

#[test]
fn flood_of_cancelled_calls_leaves_nothing() {
    let mut server = server();
    for id in 0..10_000 {
        server.take([c::call(id), c::message(id, 50, 50), c::cancel(id)]);
        if server.is_overfull() {
            server.sent();
        }
    }
    assert!(server.begun() < 200, "{}", server.begun());
    assert!(server.accept().is_none());
    server.sent();
    assert_eq!((server.calls(), server.streams().held(), server.streams().in_lines()), (0, 0, 0));
}

#[test]
fn callers_who_come_and_go_while_the_carrier_takes_nothing_leave_nothing() {
    let mut client = client();
    for _ in 0..10_000 {
        let id = client.call();
        client.send(id, data(5)).unwrap();
        client.read(id);
        client.cancel(id);
        client.woken();
    }
    assert!(client.streams().in_lines() < 300, "{}", client.streams().in_lines());
    assert!(client.sent().is_empty());
}

#[test]
fn call_that_holds_most_is_ended_and_no_other() {
    let config = Config { window: 1000, max_unread: 1500, ..Config::default() };
    let text = "more than 1500 bytes wait to be read, and this call has most of them";
    let mut server = server_with(config.clone());
    server.take([c::call(1), c::call(2), c::call(3), c::message(1, 900, 900), c::message(2, 500, 500)]);
    while server.accept().is_some() {}
    assert!(server.unread().is_within_limit());
    server.take([c::message(3, 500, 500)]);
    assert!(!server.unread().is_within_limit());
    assert!(server.sent().is_empty(), "it is the driver's turn");
    assert_eq!(server.most(), 908);
    server.end_most();
    assert!(server.unread().is_within_limit());
    assert_eq!(server.sent(), [format!("1 close ResourceExhausted `{text}`")]);
    assert_eq!(server.read(2), ["message 500 of 500"]);

    let mut client = client_with(config);
    let (first, second) = (client.call(), client.call());
    client.sent();
    client.take([s::headers(1, &[]), s::message(1, 900, 900), s::close(1, None), s::message(2, 700, 700)]);
    client.end_most();
    assert!(client.sent().is_empty(), "the server has ended the call itself");
    assert_eq!(client.read(first), [format!("end ResourceExhausted `{text}`")]);
    assert_eq!(client.read(second), ["headers []", "message 700 of 700"]);
    assert_eq!((client.most(), client.unread().queued()), (0, 0));
}

#[test]
fn metadata_count_until_they_are_read() {
    let mut server = server();
    let headers = Some(metadata(&[("x-name", "value")]));
    let new = NewStream {
        method_name: METHOD.into(),
        request_headers: headers,
        initial_window_size: 1000,
        protocol_revision: 2,
    };
    server.take([c::frame(1, ClientFrame::NewStream(new))]);
    assert!(server.streams().held() >= "x-name".len() + "value".len() + METHOD.len());
    assert!(server.accept().is_some());
    assert_eq!(server.streams().held(), 0);

    let (mut client, id) = client_in_call();
    client.take([s::headers(1, &[("x-name", "value")]), s::headers(1, &[("x-late", "is dropped")])]);
    let first = client.streams().held();
    assert!(first >= "x-name".len() + "value".len());
    let mut status = Status::new(Code::Aborted, "because");
    status.details = vec![Detail { type_url: "type".into(), value: data(1000) }; 3];
    let trailers = Some(metadata(&[("x-trailer", "value")]));
    client.take([s::frame(
        1,
        ServerFrame::CloseStream(CloseStream { response_trailers: trailers, status: Some(status) }),
    )]);
    let both = client.streams().held();
    assert!(both >= first + 3004 + "x-trailer".len(), "{both}");
    assert!(matches!(client.poll_event(id), Some(ResponseEvent::Headers(_))));
    assert_eq!(client.streams().held(), both - first);
    assert!(matches!(client.poll_event(id), Some(ResponseEvent::End { .. })));
    assert_eq!(client.streams().held(), 0);

    // And who has most of them is ended like others.
    let (mut client, id) = client_in_call();
    client.take([s::headers(1, &[("x-name", "value")]), s::close(1, None)]);
    client.end_most();
    assert_eq!((client.most(), client.streams().held()), (0, 0));
    assert!(client.read(id)[0].starts_with("end ResourceExhausted"));
}
