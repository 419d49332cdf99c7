//! Where the messages of a gRPC stream begin and end.

/// What comes before each message: whether it is compressed, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// Follows a stream of messages by their prefixes.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// What has come of the next prefix.
    prefix: [u8; PREFIX],
    seen: usize,
    /// What is still to come of the message after it.
    left: usize,
}

impl Messages {
    pub(super) fn follow(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let len = if self.left > 0 { self.left } else { PREFIX - self.seen }.min(data.len());
            let (part, rest) = data.split_at(len);
            data = rest;
            if self.left > 0 {
                self.left -= len;
                continue;
            }
            self.prefix[self.seen..self.seen + len].copy_from_slice(part);
            self.seen += len;
            if self.seen == PREFIX {
                let [_, length @ ..] = self.prefix;
                (self.seen, self.left) = (0, u32::from_be_bytes(length) as usize);
            }
        }
    }

    /// Whether a message has begun and not come to its end.
    pub(super) fn is_within(&self) -> bool {
        self.seen > 0 || self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_messages_are_found_whatever_the_chunks() {
        let sizes = [0, 1, 300, 0, 70_000];
        let (mut stream, mut ends) = (Vec::new(), vec![0]);
        for size in sizes {
            stream.push(0);
            stream.extend_from_slice(&(size as u32).to_be_bytes());
            stream.resize(stream.len() + size, 0xff);
            ends.push(stream.len());
        }
        for chunk in [1, 2, 3, 5, 7, 306, 4096, stream.len()] {
            let (mut messages, mut at) = (Messages::default(), 0);
            for data in stream.chunks(chunk) {
                messages.follow(data);
                at += data.len();
                assert_eq!(messages.is_within(), !ends.contains(&at), "after {at} bytes in chunks of {chunk}");
            }
        }
    }
}
