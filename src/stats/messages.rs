//! Finds gRPC messages in a stream of chunks.

/// Bytes in front of each message: a compression flag and the length, big-endian.
const PREFIX: usize = 5;

/// Where in the stream of length-prefixed messages we are.
///
/// Chunks may be cut anywhere; nothing is buffered but a prefix that is cut. A stream that is not gRPC gives numbers
/// without meaning, and no harm.
/// See [gRPC over HTTP/2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md), Length-Prefixed-Message.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    prefix: [u8; PREFIX],
    /// How much of `prefix` is there; all of it while inside a message.
    have: usize,
    /// Bytes of the current message still to come.
    left: usize,
}

impl Messages {
    /// Takes the next chunk, and calls `whole` with the length of each message that it completes.
    pub(crate) fn feed(&mut self, mut chunk: &[u8], mut whole: impl FnMut(u32)) {
        loop {
            if self.have < PREFIX {
                let (head, rest) = chunk.split_at(chunk.len().min(PREFIX - self.have));
                self.prefix[self.have..self.have + head.len()].copy_from_slice(head);
                self.have += head.len();
                chunk = rest;
                if self.have < PREFIX {
                    return;
                }
                self.left = self.len() as usize;
            }
            let take = chunk.len().min(self.left);
            self.left -= take;
            chunk = &chunk[take..];
            if self.left > 0 {
                return;
            }
            whole(self.len());
            self.have = 0;
        }
    }

    /// Whether a message has begun and not come to its end.
    #[cfg(feature = "gateway")]
    pub(crate) fn is_within(&self) -> bool {
        self.have > 0
    }

    fn len(&self) -> u32 {
        let [_flag, len @ ..] = self.prefix;
        u32::from_be_bytes(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(sizes: &[u32]) -> Vec<u8> {
        let message = |size: &u32| [&[0][..], &size.to_be_bytes(), &vec![7; *size as usize]].concat();
        sizes.iter().flat_map(message).collect()
    }

    #[test]
    fn messages_are_found_wherever_chunks_are_cut() {
        let sizes = [3, 0, 300, 0, 0, 1, 70_000];
        let stream = framed(&sizes);
        for cut in [1, 2, 4, 5, 6, 7, 16_384, stream.len()] {
            let (mut messages, mut found) = (Messages::default(), Vec::new());
            stream.chunks(cut).for_each(|chunk| messages.feed(chunk, |len| found.push(len)));
            assert_eq!(found, sizes, "chunks of {cut}");
        }
    }

    #[cfg(feature = "gateway")]
    #[test]
    fn ends_of_messages_are_found_whatever_the_chunks() {
        let sizes = [0, 1, 300, 0, 70_000];
        let stream = framed(&sizes);
        let ends: Vec<_> = (0..=sizes.len()).map(|count| framed(&sizes[..count]).len()).collect();
        for cut in [1, 2, 3, 5, 7, 306, 4096, stream.len()] {
            let (mut messages, mut at) = (Messages::default(), 0);
            for chunk in stream.chunks(cut) {
                messages.feed(chunk, |_| {});
                at += chunk.len();
                assert_eq!(messages.is_within(), !ends.contains(&at), "after {at} bytes in chunks of {cut}");
            }
        }
    }

    #[test]
    fn a_message_that_is_cut_off_does_not_count() {
        let (mut messages, mut found) = (Messages::default(), Vec::new());
        let stream = framed(&[8, 8]);
        messages.feed(&stream[..stream.len() - 1], |len| found.push(len));
        messages.feed(&[], |len| found.push(len));
        assert_eq!(found, [8]);
    }
}
