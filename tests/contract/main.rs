//! What a tunnel promises, written once ([`calls`], [`endings`]) and held against every way to call through one.
//! [`handles`] holds what does not depend on the way.

#![allow(unreachable_pub)] // no other crate sees this one

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod endings;
mod handles;
mod ways;

use common::egress::Speaks;
use common::rig::Over;
use ways::Way;

/// One module per way to call, with one test per promise in it.
macro_rules! stamp {
    ($name:ident, $way:expr, $flavor:tt, $promises:ident: $($promise:ident)*) => {
        mod $name {
            use super::{$promises as promises, *};
            $(
                #[tokio::test(flavor = $flavor)]
                async fn $promise() {
                    if $way.can_run() {
                        promises::$promise($way).await;
                    }
                }
            )*
        }
    };
}

/// What holds on every way, with few bytes: also where every byte travels alone.
macro_rules! stamp_calls {
    ($name:ident, $way:expr, $flavor:tt) => {
        stamp! { $name, $way, $flavor, calls:
            unary_answers_what_was_sent
            empty_messages_arrive_as_messages
            download_gives_every_message_in_order
            upload_takes_every_byte
            chat_answers_each_message_before_the_next
            headers_come_before_the_first_message
            half_close_lets_the_rest_arrive
            server_may_end_while_the_caller_still_talks
            metadata_travels_both_ways
            status_keeps_its_details
            status_after_some_answers_comes_last
            refusal_is_trailers_only
            dropped_calls_cancel_their_handlers
            deadline_ends_call_and_handler
            calls_run_side_by_side
        }
    };
}

macro_rules! stamp_bulk {
    ($name:ident, $way:expr, $flavor:tt) => {
        stamp! { $name, $way, $flavor, calls:
            large_messages_arrive_whole
            unread_answers_hold_their_writer_and_nobody_else
            unread_requests_hold_their_writer_and_nobody_else
        }
    };
}

macro_rules! stamp_endings {
    ($name:ident, $way:expr, $flavor:tt) => {
        stamp! { $name, $way, $flavor, endings:
            vanished_peer_fails_calls_in_flight
            agent_shutdown_lets_calls_finish
            hub_shutdown_lets_calls_finish
            end_of_grace_cuts_calls_off
            second_shutdown_cuts_calls_off
            calls_after_shutdown_are_unavailable
        }
    };
}

stamp_calls! { shared, Way::Shared, "multi_thread" }
stamp_calls! { dialled, Way::Dialled, "multi_thread" }
stamp_calls! { to_hub, Way::ToHub, "multi_thread" }
stamp_calls! { chopped, Way::Chopped, "multi_thread" }
stamp_calls! { one_thread, Way::Shared, "current_thread" }
stamp_calls! { connect, Way::Over(Over::Through(Speaks::Connect)), "multi_thread" }
stamp_calls! { socks5, Way::Over(Over::Through(Speaks::Socks5)), "multi_thread" }
stamp_calls! { unix, Way::Over(Over::Unix), "multi_thread" }
stamp_calls! { own, Way::Over(Over::Own), "multi_thread" }
stamp_calls! { stock_ssh, Way::StockSsh, "multi_thread" }
#[cfg(feature = "websocket")]
stamp_calls! { websocket, Way::Over(Over::WebSocket), "multi_thread" }
#[cfg(feature = "websocket")]
stamp_calls! { websocket_tls, Way::Over(Over::WebSocketTls), "multi_thread" }
#[cfg(feature = "gateway")]
stamp_calls! { gateway, Way::Gateway, "multi_thread" }
#[cfg(feature = "gateway")]
stamp_calls! { beside, Way::Beside, "multi_thread" }
#[cfg(feature = "grpctunnel")]
stamp_calls! { grpctunnel_reverse, Way::Reverse, "multi_thread" }
#[cfg(feature = "grpctunnel")]
stamp_calls! { grpctunnel_forward, Way::Forward, "multi_thread" }
#[cfg(feature = "grpctunnel")]
stamp_calls! { grpctunnel_nested, Way::Nested, "multi_thread" }
#[cfg(all(feature = "gateway", feature = "grpctunnel"))]
stamp_calls! { grpctunnel_gateway, Way::ReverseGateway, "multi_thread" }

stamp_bulk! { shared_bulk, Way::Shared, "multi_thread" }
stamp_bulk! { dialled_bulk, Way::Dialled, "multi_thread" }
stamp_bulk! { to_hub_bulk, Way::ToHub, "multi_thread" }
stamp_bulk! { one_thread_bulk, Way::Shared, "current_thread" }
stamp_bulk! { connect_bulk, Way::Over(Over::Through(Speaks::Connect)), "multi_thread" }
stamp_bulk! { socks5_bulk, Way::Over(Over::Through(Speaks::Socks5)), "multi_thread" }
stamp_bulk! { unix_bulk, Way::Over(Over::Unix), "multi_thread" }
stamp_bulk! { own_bulk, Way::Over(Over::Own), "multi_thread" }
stamp_bulk! { stock_ssh_bulk, Way::StockSsh, "multi_thread" }
#[cfg(feature = "websocket")]
stamp_bulk! { websocket_bulk, Way::Over(Over::WebSocket), "multi_thread" }
#[cfg(feature = "websocket")]
stamp_bulk! { websocket_tls_bulk, Way::Over(Over::WebSocketTls), "multi_thread" }
#[cfg(feature = "gateway")]
stamp_bulk! { gateway_bulk, Way::Gateway, "multi_thread" }
#[cfg(feature = "gateway")]
stamp_bulk! { beside_bulk, Way::Beside, "multi_thread" }
#[cfg(feature = "grpctunnel")]
stamp_bulk! { grpctunnel_reverse_bulk, Way::Reverse, "multi_thread" }
#[cfg(feature = "grpctunnel")]
stamp_bulk! { grpctunnel_forward_bulk, Way::Forward, "multi_thread" }
#[cfg(feature = "grpctunnel")]
stamp_bulk! { grpctunnel_nested_bulk, Way::Nested, "multi_thread" }
#[cfg(all(feature = "gateway", feature = "grpctunnel"))]
stamp_bulk! { grpctunnel_gateway_bulk, Way::ReverseGateway, "multi_thread" }

stamp_endings! { shared_endings, Way::Shared, "multi_thread" }
stamp_endings! { dialled_endings, Way::Dialled, "multi_thread" }
stamp_endings! { to_hub_endings, Way::ToHub, "multi_thread" }
stamp_endings! { one_thread_endings, Way::Shared, "current_thread" }
#[cfg(feature = "gateway")]
stamp_endings! { gateway_endings, Way::Gateway, "multi_thread" }

// A tonic `Channel` only watches the deadline until the headers come; ours watches the whole call.
stamp! { shared_deadline, Way::Shared, "multi_thread", calls: deadline_holds_in_the_middle_of_a_stream }
stamp! { to_hub_deadline, Way::ToHub, "multi_thread", calls: deadline_holds_in_the_middle_of_a_stream }
stamp! { chopped_deadline, Way::Chopped, "multi_thread", calls: deadline_holds_in_the_middle_of_a_stream }
#[cfg(feature = "gateway")]
stamp! { gateway_deadline, Way::Gateway, "multi_thread", calls: deadline_holds_in_the_middle_of_a_stream }
#[cfg(feature = "gateway")]
stamp! { beside_deadline, Way::Beside, "multi_thread", calls: deadline_holds_in_the_middle_of_a_stream }
stamp! { one_thread_deadline, Way::Shared, "current_thread", calls: deadline_holds_in_the_middle_of_a_stream }
