//! Random plays without a fuzzer, for plain `cargo test`. Fewer, and blind to what they reach, but
//! a broken rule is told by the shortest play that breaks it.

use arbitrary::{Arbitrary, Unstructured};
use fuzz::Play;
use proptest::prelude::*;

fn plays() -> impl Strategy<Value = Play> {
    let bytes = prop::collection::vec(any::<u8>(), 16..800);
    bytes.prop_filter_map("cut off within its frame", |bytes| {
        Play::arbitrary(&mut Unstructured::new(&bytes)).ok()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_play_breaks_a_rule(play in plays()) {
        play.perform();
    }
}
