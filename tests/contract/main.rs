//! What a tunnel promises, written once ([`calls`], [`endings`]) and held against every way to call through one.
//! [`handles`] holds what does not depend on the way.

#![allow(unreachable_pub)] // no other crate sees this one

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod endings;
mod handles;
mod ways;

/// One module per way to call, with one test per promise in it.
macro_rules! stamp {
    ($name:ident, $way:ident, $flavor:tt, $promises:ident: $($promise:ident)*) => {
        mod $name {
            use crate::{$promises as promises, ways::Way};
            $(
                #[tokio::test(flavor = $flavor)]
                async fn $promise() {
                    if Way::$way.can_run() {
                        promises::$promise(Way::$way).await;
                    }
                }
            )*
        }
    };
}

/// What holds on every way, with few bytes: also where every byte travels alone.
macro_rules! stamp_calls {
    ($name:ident, $way:ident, $flavor:tt) => {
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
    ($name:ident, $way:ident, $flavor:tt) => {
        stamp! { $name, $way, $flavor, calls:
            large_messages_arrive_whole
            unread_answers_hold_their_writer_and_nobody_else
            unread_requests_hold_their_writer_and_nobody_else
        }
    };
}

macro_rules! stamp_endings {
    ($name:ident, $way:ident, $flavor:tt) => {
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

stamp_calls! { shared, Shared, "multi_thread" }
stamp_calls! { dialled, Dialled, "multi_thread" }
stamp_calls! { to_hub, ToHub, "multi_thread" }
stamp_calls! { chopped, Chopped, "multi_thread" }
stamp_calls! { one_thread, Shared, "current_thread" }
stamp_calls! { unix, Unix, "multi_thread" }
stamp_calls! { own, Own, "multi_thread" }
stamp_calls! { stock_ssh, StockSsh, "multi_thread" }
#[cfg(feature = "websocket")]
stamp_calls! { websocket, WebSocket, "multi_thread" }
#[cfg(feature = "websocket")]
stamp_calls! { websocket_tls, WebSocketTls, "multi_thread" }
#[cfg(feature = "gateway")]
stamp_calls! { gateway, Gateway, "multi_thread" }

stamp_bulk! { shared_bulk, Shared, "multi_thread" }
stamp_bulk! { dialled_bulk, Dialled, "multi_thread" }
stamp_bulk! { to_hub_bulk, ToHub, "multi_thread" }
stamp_bulk! { one_thread_bulk, Shared, "current_thread" }
stamp_bulk! { unix_bulk, Unix, "multi_thread" }
stamp_bulk! { own_bulk, Own, "multi_thread" }
stamp_bulk! { stock_ssh_bulk, StockSsh, "multi_thread" }
#[cfg(feature = "websocket")]
stamp_bulk! { websocket_bulk, WebSocket, "multi_thread" }
#[cfg(feature = "websocket")]
stamp_bulk! { websocket_tls_bulk, WebSocketTls, "multi_thread" }
#[cfg(feature = "gateway")]
stamp_bulk! { gateway_bulk, Gateway, "multi_thread" }

stamp_endings! { shared_endings, Shared, "multi_thread" }
stamp_endings! { dialled_endings, Dialled, "multi_thread" }
stamp_endings! { to_hub_endings, ToHub, "multi_thread" }
stamp_endings! { one_thread_endings, Shared, "current_thread" }
#[cfg(feature = "gateway")]
stamp_endings! { gateway_endings, Gateway, "multi_thread" }

// A tonic `Channel` only watches the deadline until the headers come; ours watches the whole call.
stamp! { shared_deadline, Shared, "multi_thread", calls: deadline_holds_in_the_middle_of_a_stream }
stamp! { to_hub_deadline, ToHub, "multi_thread", calls: deadline_holds_in_the_middle_of_a_stream }
stamp! { chopped_deadline, Chopped, "multi_thread", calls: deadline_holds_in_the_middle_of_a_stream }
#[cfg(feature = "gateway")]
stamp! { gateway_deadline, Gateway, "multi_thread", calls: deadline_holds_in_the_middle_of_a_stream }
stamp! { one_thread_deadline, Shared, "current_thread", calls: deadline_holds_in_the_middle_of_a_stream }
