//! What a callback asks for: the one table of words that cross the language border.

/// The answer of a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Keep the present interest.
    Continue,
    /// There is something to write: call `writable` now, then whenever the kernel takes more.
    WritePending,
    /// Wait for data.
    ReadPending,
    /// Send what is buffered, then close.
    Close,
    /// Close now, whatever is buffered.
    Abort,
    /// Neither read nor write until somebody resumes the connection.
    Pause,
}

impl Action {
    /// Every action; the position of an action is its discriminant.
    pub const ALL: [Self; 6] = [
        Self::Continue,
        Self::WritePending,
        Self::ReadPending,
        Self::Close,
        Self::Abort,
        Self::Pause,
    ];

    /// The word that stands for this action on the wire.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Continue => "continue",
            Self::WritePending => "write_pending",
            Self::ReadPending => "read_pending",
            Self::Close => "close",
            Self::Abort => "abort",
            Self::Pause => "pause",
        }
    }

    /// The action that `word` stands for.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.word() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::Action;

    #[test]
    fn every_word_stands_for_one_action() {
        for (position, action) in Action::ALL.into_iter().enumerate() {
            assert_eq!(Action::from_word(action.word()), Some(action));
            assert_eq!(action as usize, position);
        }
    }

    #[test]
    fn nothing_else_is_an_action() {
        for word in ["", "Close", "close ", "write pending", "continue\0"] {
            assert_eq!(Action::from_word(word), None, "{word:?}");
        }
    }
}
