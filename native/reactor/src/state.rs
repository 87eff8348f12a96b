//! What a connection does next: a pure table of (state, input) -> (state, effect).
//!
//! The engine performs the effects; nothing here touches a socket.

use crate::action::Action;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It waits for data.
    Reading,
    /// It has something to write; nothing is read meanwhile, so a peer that
    /// takes nothing cannot make us buffer without bound.
    Writing,
    /// It waits to be resumed.
    Paused,
    /// It sends the rest of its buffer and will then close.
    Closing,
    /// It is over.
    Closed,
}

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// A callback, or somebody who resumes the connection, asks for this.
    Act(Action),
    /// The last buffered byte was taken by the kernel.
    Flushed,
    /// The peer is gone, the descriptor is dead or the context stops.
    Lost,
}

/// What the engine has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Read when there is something to read.
    AwaitData,
    /// Call `writable`, at once if the kernel takes more, else as soon as it does.
    Write,
    /// Send the buffer without asking the protocol again.
    Flush,
    /// Leave the connection alone.
    Hold,
    /// Report the loss, stop watching and close.
    Retire,
    /// Nothing: the connection is over already.
    Ignore,
}

impl State {
    /// The next state and the effect of `input`.
    #[must_use]
    pub const fn on(self, input: Input) -> (Self, Effect) {
        match (self, input) {
            (Self::Closed, _) => (Self::Closed, Effect::Ignore),
            (_, Input::Lost) => (Self::Closed, Effect::Retire),
            (_, Input::Act(Action::Abort)) => (Self::Closed, Effect::Retire),
            (Self::Closing, Input::Flushed) => (Self::Closed, Effect::Retire),
            (Self::Closing, Input::Act(_)) => (Self::Closing, Effect::Flush),
            (_, Input::Act(Action::Close)) => (Self::Closing, Effect::Flush),
            (_, Input::Act(Action::WritePending)) => (Self::Writing, Effect::Write),
            (_, Input::Act(Action::ReadPending)) => (Self::Reading, Effect::AwaitData),
            (_, Input::Act(Action::Pause)) => (Self::Paused, Effect::Hold),
            (Self::Reading, Input::Act(Action::Continue) | Input::Flushed) => {
                (Self::Reading, Effect::AwaitData)
            }
            (Self::Writing, Input::Act(Action::Continue)) => (Self::Writing, Effect::Write),
            (Self::Writing, Input::Flushed) => (Self::Reading, Effect::AwaitData),
            (Self::Paused, Input::Act(Action::Continue) | Input::Flushed) => {
                (Self::Paused, Effect::Hold)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Effect, Input, State};
    use crate::action::Action;
    use proptest::prelude::*;

    const STATES: [State; 5] = [
        State::Reading,
        State::Writing,
        State::Paused,
        State::Closing,
        State::Closed,
    ];

    fn inputs() -> Vec<Input> {
        let mut inputs: Vec<Input> = Action::ALL.into_iter().map(Input::Act).collect();
        inputs.extend([Input::Flushed, Input::Lost]);
        inputs
    }

    #[test]
    fn retire_is_the_only_way_into_closed_and_happens_once() {
        for state in STATES {
            for input in inputs() {
                let (next, effect) = state.on(input);
                let enters = state != State::Closed && next == State::Closed;
                assert_eq!(enters, effect == Effect::Retire, "{state:?} {input:?}");
            }
        }
    }

    #[test]
    fn closed_ignores_everything() {
        for input in inputs() {
            assert_eq!(State::Closed.on(input), (State::Closed, Effect::Ignore));
        }
    }

    #[test]
    fn a_closing_connection_never_calls_its_protocol_again() {
        for input in inputs() {
            let (_, effect) = State::Closing.on(input);
            assert!(
                matches!(effect, Effect::Flush | Effect::Retire),
                "{input:?}"
            );
        }
    }

    #[test]
    fn an_action_means_the_same_from_every_open_state() {
        for action in Action::ALL {
            if action == Action::Continue {
                continue;
            }
            let from = |state: State| state.on(Input::Act(action));
            assert_eq!(from(State::Reading), from(State::Writing));
            assert_eq!(from(State::Reading), from(State::Paused));
        }
    }

    #[test]
    fn continue_keeps_the_state() {
        for state in STATES {
            assert_eq!(state.on(Input::Act(Action::Continue)).0, state);
        }
    }

    proptest! {
        #[test]
        fn every_walk_retires_at_most_once(walk in prop::collection::vec(0usize..8, 0..64)) {
            let inputs = inputs();
            let mut state = State::Reading;
            let mut retired = 0;
            for step in walk {
                let (next, effect) = state.on(inputs[step]);
                retired += usize::from(effect == Effect::Retire);
                state = next;
            }
            prop_assert_eq!(retired, usize::from(state == State::Closed));
        }

        #[test]
        fn a_walk_ends_where_its_words_lead(walk in prop::collection::vec(0usize..8, 0..64)) {
            let inputs = inputs();
            let walk: Vec<Input> = walk.into_iter().map(|step| inputs[step]).collect();
            let end = walk.iter().fold(State::Reading, |state, input| state.on(*input).0);
            prop_assert_eq!(end, destination(&walk));
        }
    }

    /// The same without a table: the end of a connection first of all, then what was said last.
    fn destination(walk: &[Input]) -> State {
        let act = |action| move |input: &Input| *input == Input::Act(action);
        let closing = walk.iter().position(act(Action::Close));
        let over = walk.iter().enumerate().any(|(at, input)| match input {
            Input::Lost | Input::Act(Action::Abort) => true,
            Input::Flushed => closing.is_some_and(|closing| closing < at),
            Input::Act(_) => false,
        });
        if over {
            return State::Closed;
        }
        if closing.is_some() {
            return State::Closing;
        }
        let telling = |input: &Input| !act(Action::Continue)(input) && *input != Input::Flushed;
        let last = walk.iter().rposition(telling);
        let flushed = walk.iter().rposition(|input| *input == Input::Flushed);
        match last.map(|at| walk[at]) {
            Some(Input::Act(Action::WritePending)) if flushed < last => State::Writing,
            Some(Input::Act(Action::Pause)) => State::Paused,
            _ => State::Reading,
        }
    }
}
