//! The protocol's revisions, and how a tunnel comes to one.

use std::fmt;

/// How a call is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Revision {
    /// No flow control: what one slow reader leaves stops the whole tunnel.
    Zero,
    /// Every byte of a message takes one of the receiver's window; a message of none is free.
    One,
    /// The beginning of a message takes five bytes more, so that empty ones are not free.
    Two,
}

impl Revision {
    const ALL: [Self; 3] = [Self::Zero, Self::One, Self::Two];

    /// Those that whoever speaks `newest` announces.
    pub(super) fn up_to(newest: Self) -> Vec<i32> {
        Self::ALL.into_iter().filter(|revision| *revision <= newest).map(Self::number).collect()
    }

    /// The newest that both sides know. Numbers that mean nothing here are a later version's, and passed over.
    pub(super) fn choose(newest: Self, theirs: &[i32]) -> Option<Self> {
        theirs.iter().filter_map(|number| Self::of(*number)).filter(|revision| *revision <= newest).max()
    }

    pub(super) fn of(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|revision| revision.number() == number)
    }

    pub(super) fn number(self) -> i32 {
        match self {
            Self::Zero => 0,
            Self::One => 1,
            Self::Two => 2,
        }
    }

    /// What the beginning of a message takes of a window, beside its data.
    pub(super) fn overhead(self) -> u32 {
        if self == Self::Two { 5 } else { 0 }
    }

    /// The smallest window by which every message can be sent.
    pub(crate) fn minimum_window(self) -> u32 {
        match self {
            Self::Zero => 0,
            Self::One => 1,
            Self::Two => 6,
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_common_revision_is_chosen() {
        let choose = Revision::choose;
        assert_eq!(choose(Revision::Two, &[0, 1]), Some(Revision::One));
        assert_eq!(choose(Revision::Two, &[1, 2]), Some(Revision::Two));
        assert_eq!(choose(Revision::One, &[2, 1, 0]), Some(Revision::One));
        assert_eq!(choose(Revision::Two, &[0]), Some(Revision::Zero));
    }

    #[test]
    fn numbers_of_a_later_version_are_passed_over() {
        assert_eq!(Revision::choose(Revision::Two, &[1, 2, 1000, -1]), Some(Revision::Two));
        assert_eq!(Revision::choose(Revision::Two, &[3, 1000]), None);
    }

    #[test]
    fn empty_list_has_nothing_in_common() {
        assert_eq!(Revision::choose(Revision::Two, &[]), None);
    }

    #[test]
    fn announcement_is_never_empty() {
        assert_eq!(Revision::up_to(Revision::Zero), [0]);
        assert_eq!(Revision::up_to(Revision::Two), [0, 1, 2]);
    }
}
