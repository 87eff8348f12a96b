//! The Python stack of another thread.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

/// Of a deep stack so many of the outermost frames are kept, which say where it came from,
const OUTERMOST: usize = 20;

/// and so many of the innermost, which say what it does.
const INNERMOST: usize = 80;

/// The same frame more often than this, one after the other, is told in one line.
const SHOWN: usize = 3;

/// No source of a program is longer.
const MAX_SOURCE_BYTES: u64 = 8 * 1024 * 1024;

/// A place in a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    file: String,
    line: usize,
    function: String,
}

/// Where a thread is, outermost frame first. Empty for a thread that runs no Python code.
///
/// No instruction of Python is run meanwhile, so that the GIL stays here and the thread where it
/// is: the frames belong together.
pub(crate) fn frames(py: Python<'_>, ident: u64) -> PyResult<Vec<Frame>> {
    let all = py.import("sys")?.call_method0("_current_frames")?;
    let mut next = all.cast_into::<PyDict>()?.get_item(ident)?;
    let mut frames = Vec::new();
    while let Some(frame) = next {
        let code = frame.getattr("f_code")?;
        frames.push(Frame {
            file: text(&code.getattr("co_filename")?),
            // None in the middle of an instruction that belongs to no line.
            line: frame.getattr("f_lineno")?.extract().unwrap_or(0),
            function: text(&code.getattr("co_name")?),
        });
        let back = frame.getattr("f_back")?;
        next = (!back.is_none()).then_some(back);
    }
    frames.reverse();
    Ok(frames)
}

/// Frames as a traceback prints them, with their lines of source where there is a file. Needs no
/// Python: by now the thread may hold the GIL for long.
pub(crate) fn format(frames: &[Frame]) -> String {
    let mut lines = Lines::default();
    let left_out = frames.len().saturating_sub(OUTERMOST + INNERMOST);
    if left_out == 0 {
        lines.add(frames);
        return lines.text;
    }
    lines.add(&frames[..OUTERMOST]);
    lines.say(format_args!("  ... {left_out} frames left out ..."));
    lines.add(&frames[OUTERMOST + left_out..]);
    lines.text
}

#[derive(Default)]
struct Lines {
    text: String,
    sources: HashMap<String, Vec<String>>,
}

impl Lines {
    fn add(&mut self, frames: &[Frame]) {
        for same in frames.chunk_by(|one, next| one == next) {
            for frame in same.iter().take(SHOWN) {
                self.add_frame(frame);
            }
            if same.len() > SHOWN {
                let more = same.len() - SHOWN;
                self.say(format_args!("  [Previous line repeated {more} more times]"));
            }
        }
    }

    fn add_frame(&mut self, frame: &Frame) {
        let Frame {
            file,
            line,
            function,
        } = frame;
        self.say(format_args!(
            "  File \"{file}\", line {line}, in {function}"
        ));
        let source = self
            .sources
            .entry(file.clone())
            .or_insert_with(|| source(file));
        if let Some(line) = line.checked_sub(1).and_then(|index| source.get(index)) {
            let line = line.trim().to_owned();
            self.say(format_args!("    {line}"));
        }
    }

    fn say(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing into a String does not fail.
        let _ = writeln!(self.text, "{line}");
    }
}

/// The lines of a source file; none if it is not there, or no plain file.
fn source(file: &str) -> Vec<String> {
    let plain = fs::metadata(file)
        .is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_SOURCE_BYTES);
    let bytes = if plain {
        fs::read(file)
    } else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    text.lines().map(str::to_owned).collect()
}

fn text(object: &Bound<'_, PyAny>) -> String {
    object.cast::<PyString>().map_or_else(
        |_| "?".to_owned(),
        |text| text.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(file: &str, line: usize) -> Frame {
        Frame {
            file: file.to_owned(),
            line,
            function: "f".to_owned(),
        }
    }

    #[test]
    fn a_frame_shows_its_line_of_source() {
        let here = file!();
        let first = concat!(env!("CARGO_MANIFEST_DIR"), "/src/stack.rs");
        let text = format(&[frame(first, 1), frame(here, 0), frame("<string>", 7)]);
        let wanted = format!(
            "  File \"{first}\", line 1, in f\n    //! The Python stack of another thread.\n  \
             File \"{here}\", line 0, in f\n  File \"<string>\", line 7, in f\n"
        );
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_recursion_is_told_in_few_lines() {
        let text = format(&vec![frame("<string>", 7); 10]);
        assert_eq!(text.lines().count(), SHOWN + 1);
        assert!(text.ends_with("  [Previous line repeated 7 more times]\n"));
    }

    #[test]
    fn the_middle_of_a_deep_stack_is_left_out() {
        let frames: Vec<_> = (0..500).map(|line| frame("<string>", line)).collect();
        let text = format(&frames);
        assert!(text.contains("  ... 400 frames left out ...\n"));
        assert!(text.contains("line 19, in f\n") && !text.contains("line 20, in f\n"));
        assert!(!text.contains("line 419, in f\n") && text.contains("line 420, in f\n"));
    }

    #[test]
    fn only_plain_files_are_read() {
        assert!(source("/dev/zero").is_empty());
        assert!(source("/").is_empty());
        assert!(source("<string>").is_empty());
    }
}
