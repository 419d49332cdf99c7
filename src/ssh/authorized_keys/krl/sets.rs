//! What a list holds many of, kept in little more memory than the list itself takes. Fill, sort, then ask.

use std::ops::Range;

/// Strings, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Strings {
    bytes: Vec<u8>,
    /// Where each is; after [`sort`](Self::sort) in the order of what is there.
    places: Vec<Range<usize>>,
}

impl Strings {
    pub(super) fn insert(&mut self, string: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(string);
        self.places.push(start..self.bytes.len());
    }

    pub(super) fn sort(&mut self) {
        let bytes = &self.bytes;
        self.places.sort_unstable_by_key(|place| bytes.get(place.clone()));
        self.bytes.shrink_to_fit();
        self.places.shrink_to_fit();
    }

    pub(super) fn contains(&self, string: &[u8]) -> bool {
        self.places.binary_search_by_key(&Some(string), |place| self.bytes.get(place.clone())).is_ok()
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.places.capacity() * size_of::<Range<usize>>()
    }
}

/// Serial numbers of certificates. 0 is none: it is what a CA that does not count writes into every certificate.
#[derive(Debug, Default)]
pub(super) struct Serials {
    /// First and last; after [`sort`](Self::sort) in order and apart.
    ranges: Vec<(u64, u64)>,
    bitmaps: Vec<Bitmap>,
}

/// Bit n from the end stands for serial `first + n`. It is not taken apart: a bit would become a range, of 128 bits.
#[derive(Debug)]
struct Bitmap {
    first: u64,
    bits: Box<[u8]>,
}

impl Serials {
    /// Adds all from `first` to `last`; none if that is no range of serial numbers.
    pub(super) fn insert(&mut self, first: u64, last: u64) -> Option<()> {
        if first == 0 || last < first {
            return None;
        }
        self.ranges.push((first, last));
        Some(())
    }

    /// Adds those whose bits are set in a number that is written as an mpint (RFC 4251 §5), counted from `first`; none
    /// if it is negative, or if a bit stands for what is no serial number.
    pub(super) fn insert_bitmap(&mut self, first: u64, mpint: &[u8]) -> Option<()> {
        if mpint.first().is_some_and(|byte| byte & 0x80 != 0) {
            return None;
        }
        let zeros = mpint.iter().take_while(|&&byte| byte == 0).count();
        let bits = mpint.get(zeros..).unwrap_or_default();
        let Some(top) = bits.first() else { return Some(()) };
        let highest = (bits.len() as u64 * 8 - 1).checked_sub(u64::from(top.leading_zeros()))?;
        first.checked_add(highest)?;
        if first == 0 && bits.last().is_some_and(|byte| byte & 1 != 0) {
            return None;
        }
        self.bitmaps.push(Bitmap { first, bits: bits.into() });
        Some(())
    }

    pub(super) fn sort(&mut self) {
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|next, before| {
            let touch = next.0 <= before.1.saturating_add(1);
            if touch {
                before.1 = before.1.max(next.1);
            }
            touch
        });
        self.ranges.shrink_to_fit();
        self.bitmaps.shrink_to_fit();
    }

    pub(super) fn contains(&self, serial: u64) -> bool {
        let after = self.ranges.partition_point(|(first, _)| *first <= serial);
        let within = after.checked_sub(1).and_then(|index| self.ranges.get(index));
        within.is_some_and(|(_, last)| serial <= *last) || self.bitmaps.iter().any(|bitmap| bitmap.contains(serial))
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        let bits: usize = self.bitmaps.iter().map(|bitmap| bitmap.bits.len()).sum();
        bits + self.ranges.capacity() * size_of::<(u64, u64)>() + self.bitmaps.capacity() * size_of::<Bitmap>()
    }
}

impl Bitmap {
    fn contains(&self, serial: u64) -> bool {
        let Some(bit) = serial.checked_sub(self.first) else { return false };
        let byte = usize::try_from(bit / 8).ok().and_then(|index| self.bits.iter().nth_back(index));
        byte.is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_or_overlap_become_one() {
        let mut serials = Serials::default();
        for (first, last) in [(7, 9), (1, 2), (3, 3), (8, 12), (20, u64::MAX), (u64::MAX, u64::MAX)] {
            serials.insert(first, last).expect("a range");
        }
        serials.sort();
        assert_eq!(serials.ranges, [(1, 3), (7, 12), (20, u64::MAX)]);
        let inside = [1, 3, 7, 12, 20, 21, u64::MAX];
        let outside = [0, 4, 6, 13, 19];
        assert!(inside.into_iter().all(|serial| serials.contains(serial)));
        assert!(!outside.into_iter().any(|serial| serials.contains(serial)));
    }

    #[test]
    fn bits_count_from_the_end() {
        let mut serials = Serials::default();
        serials.insert_bitmap(100, &[0, 0x81, 0x02]).expect("bits 1, 8 and 15");
        let found: Vec<_> = (0..200).filter(|&serial| serials.contains(serial)).collect();
        assert_eq!(found, [101, 108, 115]);
        serials.insert_bitmap(u64::MAX, &[1]).expect("the last serial");
        assert!(serials.contains(u64::MAX));
    }

    #[test]
    fn what_is_no_serial_is_refused() {
        let mut serials = Serials::default();
        for (first, last) in [(0, 0), (0, 5), (6, 5)] {
            assert_eq!(serials.insert(first, last), None, "{first}-{last}");
        }
        for (first, mpint) in [(5, &[0x80][..]), (0, &[1]), (0, &[0, 0xff]), (u64::MAX, &[2])] {
            assert_eq!(serials.insert_bitmap(first, mpint), None, "{first} {mpint:?}");
        }
        for (first, mpint) in [(0, &[][..]), (0, &[0]), (0, &[2]), (u64::MAX, &[0, 0])] {
            assert_eq!(serials.insert_bitmap(first, mpint), Some(()), "{first} {mpint:?}");
        }
        serials.sort();
        assert!(serials.contains(1) && !serials.contains(0) && !serials.contains(u64::MAX));
    }

    #[test]
    fn strings_are_found_whole() {
        let mut strings = Strings::default();
        for string in ["b", "", "abc", "b", "ab"] {
            strings.insert(string.as_bytes());
        }
        strings.sort();
        let found = ["", "a", "ab", "abc", "abcd", "b", "bb", "c"].map(|string| strings.contains(string.as_bytes()));
        assert_eq!(found, [true, false, true, true, false, true, false, false]);
        assert!(!Strings::default().contains(b""));
    }
}
