//! One Chat that carries a lot: what is said and what comes back travel at once, and no byte may come changed.

use std::time::Duration;

use tokio_stream::Stream;
use tonic::Streaming;

use super::{
    echo::{pattern, pb::Payload},
    rig::soon,
};

/// Who renews the keys after each MiB; with both, they may begin at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RekeyedBy {
    Peer,
    Both,
}

impl RekeyedBy {
    /// What our own end is told.
    pub fn own(self) -> (usize, Duration) {
        let bytes = if self == Self::Both { 1 << 20 } else { usize::MAX };
        (bytes, Duration::from_secs(3600))
    }
}

/// A message of a [`numbered`] stream, in bytes.
const MESSAGE: usize = 64 << 10;

/// So many MiB, in messages of 64 KiB that begin with their numbers.
pub fn numbered(mib: usize) -> impl Stream<Item = Payload> + Send + 'static {
    let rest = rest();
    tokio_stream::iter((0..count(mib)).map(move |number| message(number, &rest)))
}

/// Waits for the same messages in the same order, and for the end behind them. Panics when none comes for 10 s.
pub async fn assert_numbered(mut answers: Streaming<Payload>, mib: usize) {
    let rest = rest();
    for number in 0..count(mib) {
        let answer = soon("an answer", answers.message()).await;
        let answer = answer.unwrap_or_else(|status| panic!("instead of answer {number}: {status:?}"));
        assert!(answer.expect("not the end") == message(number, &rest), "answer {number} came changed");
    }
    assert!(soon("the end", answers.message()).await.expect("an end").is_none());
}

const fn count(mib: usize) -> usize {
    (mib << 20) / MESSAGE
}

fn rest() -> Vec<u8> {
    pattern(0, MESSAGE - size_of::<u64>())
}

fn message(number: usize, rest: &[u8]) -> Payload {
    Payload { data: [&(number as u64).to_be_bytes(), rest].concat() }
}
