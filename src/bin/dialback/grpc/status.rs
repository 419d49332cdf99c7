//! The status with which a call ended, printed as grpcurl prints it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use base64::Engine as _;
use prost::Message as _;
use tonic::{Code, Status};

use super::output::printable;
use super::schema::Schema;
use crate::format::{Encoder, Format};

/// The name of a code, as the Go library writes it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// What is printed of a status that is not OK.
pub(super) async fn text(status: &Status, schema: &mut Schema, format: Format) -> String {
    let mut text =
        format!("ERROR:\n  Code: {}\n  Message: {}\n", code_name(status.code()), printable(status.message()));
    let details = tonic_types::pb::Status::decode(status.details()).map(|status| status.details).unwrap_or_default();
    if details.is_empty() {
        return text;
    }
    text.push_str("  Details:\n");
    let format = if format == Format::Binary { Format::Json } else { format };
    for (index, detail) in details.into_iter().enumerate() {
        let number = format!("  {})", index + 1);
        let shown = detail_text(&detail, schema, format).await;
        for (line, part) in shown.lines().enumerate() {
            let margin = if line == 0 { number.clone() } else { " ".repeat(number.len()) };
            let _ = writeln!(text, "{margin}\t{part}"); // a String takes all
        }
    }
    text
}

async fn detail_text(detail: &prost_types::Any, schema: &mut Schema, format: Format) -> String {
    const ANY: &str = "google.protobuf.Any";
    schema.knows_type(ANY).await;
    let message = schema.decode(ANY, detail.encode_to_vec().into()).await;
    let encoded = message
        .map_err(|why| why.to_string())
        .and_then(|message| encoder(format).encode(&message).map_err(|error| error.to_string()));
    match encoded {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
        Err(why) => {
            let value = base64::engine::general_purpose::STANDARD.encode(&detail.value);
            let detail = serde_json::json!({ "@type": detail.type_url, "@error": why, "@value": value });
            printable(&detail.to_string())
        }
    }
}

/// What writes messages for stderr.
fn encoder(format: Format) -> Encoder {
    Encoder::new(format, false).for_terminal(io::stderr().is_terminal())
}

/// The status as a message, `google.rpc.Status`, in a format. None if it cannot be, and for bytes on a terminal.
pub(super) async fn encoded(status: &Status, schema: &mut Schema, format: Format) -> Option<Vec<u8>> {
    const STATUS: &str = "google.rpc.Status";
    if format == Format::Binary && io::stderr().is_terminal() {
        return None;
    }
    let bytes = if status.details().is_empty() {
        let code = status.code() as i32;
        tonic_types::pb::Status { code, message: status.message().to_owned(), details: Vec::new() }.encode_to_vec()
    } else {
        status.details().to_vec()
    };
    schema.knows_type(STATUS).await;
    let message = schema.decode(STATUS, bytes.into()).await.ok()?;
    encoder(format).encode(&message).ok()
}

/// What a status says that this side has made up: tonic's own codes are not always those that gRPC has for it.
pub(super) fn corrected(status: Status, server: &str) -> Status {
    correct(status, server, "")
}

/// The same for a command that has `-max-msg-sz`.
pub(super) fn corrected_with_flag(status: Status, server: &str) -> Status {
    correct(status, server, ": see -max-msg-sz")
}

fn correct(status: Status, server: &str, remedy: &str) -> Status {
    let text = status.message();
    let too_long = text.contains("decoded message length too large") || text.contains("exceeded while decompressing");
    if too_long && matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) {
        // As in every other gRPC library.
        return Status::resource_exhausted(format!("{text}{remedy}"));
    }
    let mut cause = std::error::Error::source(&status);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>().map(ToString::to_string);
        let h2 = error.downcast_ref::<h2::Error>().filter(|error| error.is_io() || error.is_go_away());
        let hyper = error.downcast_ref::<hyper::Error>().filter(|e| e.is_closed() || e.is_incomplete_message());
        if let Some(why) = io.or_else(|| h2.map(ToString::to_string)).or_else(|| hyper.map(ToString::to_string)) {
            return Status::unavailable(format!("the connection to {server} is lost: {why}"));
        }
        cause = error.source();
    }
    status
}
