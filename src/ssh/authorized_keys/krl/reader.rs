//! Reads SSH's binary data types (RFC 4251 §5), and knows where in the file it is.

use crate::ssh::authorized_keys::krl::{KrlFault, What};

/// What is left of a file, or of a string in it.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Where in the file `rest` starts.
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { rest: file, at: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// A fault at this place.
    pub(super) fn fault(&self, what: What) -> KrlFault {
        KrlFault { at: self.at, what }
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], KrlFault> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.fault(What::Cut))?;
        (self.rest, self.at) = (rest, self.at + length);
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], KrlFault> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.fault(What::Cut))?;
        (self.rest, self.at) = (rest, self.at + N);
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, KrlFault> {
        self.take_array().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, KrlFault> {
        self.take_array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, KrlFault> {
        self.take_array().map(u64::from_be_bytes)
    }

    /// A string, to be read in turn.
    pub(super) fn string(&mut self) -> Result<Self, KrlFault> {
        let length = self.u32()? as usize;
        let at = self.at;
        Ok(Self { rest: self.take(length)?, at })
    }

    /// The next of the strings that follow to the end.
    pub(super) fn next_string(&mut self) -> Result<Option<Self>, KrlFault> {
        if self.is_empty() { Ok(None) } else { self.string().map(Some) }
    }

    /// All that is left, if it is of this length.
    pub(super) fn array<const N: usize>(&self, otherwise: What) -> Result<[u8; N], KrlFault> {
        self.rest.try_into().map_err(|_| self.fault(otherwise))
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), KrlFault> {
        if self.is_empty() { Ok(()) } else { Err(self.fault(What::Excess)) }
    }
}
