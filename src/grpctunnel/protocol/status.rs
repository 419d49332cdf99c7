//! How a call ends, in the tunnel and in HTTP/2.

use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use tonic::Code;

use crate::grpctunnel::proto::Status;

/// What a detail takes beside its bytes, in a vector that has grown.
const DETAIL: usize = 192;

impl Status {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), details: Vec::new() }
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.code == 0
    }

    pub(crate) fn code(&self) -> Code {
        Code::from_i32(self.code)
    }

    /// What it takes of memory, rounded up.
    pub(super) fn memory(&self) -> usize {
        let details = self.details.iter().map(|detail| DETAIL + detail.type_url.len() + detail.value.len());
        self.message.len() + details.sum::<usize>()
    }

    /// It is to wait for a reader, so it must not keep the buffer in which the carrier received it.
    pub(super) fn keep(&mut self) {
        for detail in &mut self.details {
            detail.value = Bytes::copy_from_slice(&detail.value);
        }
    }

    /// Reads `grpc-status`, `grpc-message` and `grpc-status-details-bin`. None without the first of them. Details that are
    /// no `google.rpc.Status` have no place in the tunnel, and are left out.
    pub(crate) fn from_trailers(trailers: &HeaderMap) -> Option<Self> {
        let status = tonic::Status::from_header_map(trailers)?;
        let details = Self::decode(status.details()).map(|status| status.details).unwrap_or_default();
        Some(Self { code: status.code().into(), message: status.message().to_owned(), details })
    }

    /// Writes what [`from_trailers`](Self::from_trailers) reads, in the place of what was there. A code that gRPC does not
    /// have becomes `UNKNOWN`.
    pub(crate) fn write_to(self, trailers: &mut HeaderMap) {
        for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
            trailers.remove(name);
        }
        let details = if self.details.is_empty() { Bytes::new() } else { self.encode_to_vec().into() };
        let status = tonic::Status::with_details(self.code(), self.message, details);
        // Fails only for values that are no header: the message is percent-encoded and the details are base64.
        let written = status.add_header(trailers);
        debug_assert!(written.is_ok(), "{written:?}");
    }
}

impl From<tonic::Status> for Status {
    fn from(status: tonic::Status) -> Self {
        let details = Self::decode(status.details()).map(|status| status.details).unwrap_or_default();
        Self { code: status.code().into(), message: status.message().to_owned(), details }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpctunnel::proto::Detail;

    fn trailers_of(status: Status) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-message", "old".parse().unwrap());
        status.write_to(&mut trailers);
        trailers
    }

    #[test]
    fn details_survive_both_ways() {
        let mut status = Status::new(Code::FailedPrecondition, "no ü\n");
        status
            .details
            .push(Detail { type_url: "type.googleapis.com/x.Y".into(), value: Bytes::from_static(&[0, 255]) });
        assert_eq!(Status::from_trailers(&trailers_of(status.clone())), Some(status));
    }

    #[test]
    fn ok_says_no_more_than_its_code() {
        let trailers = trailers_of(Status::default());
        assert_eq!(trailers, HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), 0.into())]));
        assert!(Status::from_trailers(&trailers).unwrap().is_ok());
    }

    #[test]
    fn trailers_without_a_status_have_none() {
        assert_eq!(Status::from_trailers(&HeaderMap::new()), None);
    }

    #[test]
    fn code_that_grpc_does_not_have_is_unknown() {
        let status = Status { code: -7, message: String::new(), details: Vec::new() };
        assert!(!status.is_ok());
        assert_eq!(trailers_of(status)["grpc-status"], "2");
    }

    #[test]
    fn details_that_are_no_status_are_left_out() {
        let given = tonic::Status::with_details(Code::Aborted, "x", Bytes::from_static(b"\xff\xff"));
        let mut trailers = HeaderMap::new();
        given.add_header(&mut trailers).unwrap();
        let expected = Status::new(Code::Aborted, "x");
        assert_eq!(Status::from_trailers(&trailers), Some(expected.clone()));
        assert_eq!(Status::from(given), expected);
    }
}
