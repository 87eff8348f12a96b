//! Which python program this process pretends to be, and whether its version fits.
//!
//! The program decides `sys.executable`, `sys.prefix` and with them a virtual environment's packages.
//! The interpreter itself is the libpython that the library was built against, so a program of another
//! version would bring packages that do not fit. It is asked before Python starts, since afterwards
//! there is no way back.

use std::path::Path;
use std::process::{Command, Stdio};

/// The version of the headers and library that we were built against, as "3.11".
pub(crate) const BUILD_VERSION: &str = env!("PY_REACTOR_BUILD_VERSION");

/// The same with Python's flag for free threading: "3.14t".
const BUILD_ABI: &str = env!("PY_REACTOR_BUILD_ABI");

/// The program that answered at build time; empty if it was not known.
const BUILD_PROGRAM: &str = env!("PY_REACTOR_BUILD_PROGRAM");

/// Prints what [`Answer`] holds, a line each. Isolated and without site: nobody's start-up code runs.
const QUESTION: &str = "import sys; print(sys.executable); print(sys.implementation.name); \
                        print('%d.%d' % sys.version_info[:2] + sys.abiflags); \
                        print(' '.join(sys.version.split()))";

/// A program that fits.
pub(crate) struct Program {
    /// Its absolute path.
    pub(crate) path: String,
    /// Its `sys.version`: number, date of the build, compiler.
    pub(crate) build: String,
}

/// Finds the program: `wanted`, which may be a virtual environment's folder, or the build's own.
///
/// # Errors
/// A sentence for the operator.
pub(crate) fn choose(wanted: Option<&str>) -> Result<Program, String> {
    let program = wanted.unwrap_or(BUILD_PROGRAM);
    if program.is_empty() {
        return Err(format!(
            "no python program is known: set PY_REACTOR_PYTHON to a Python {BUILD_ABI}"
        ));
    }
    let in_folder = Path::new(program).join("bin/python");
    let program = if in_folder.is_file() {
        in_folder.display().to_string()
    } else if Path::new(program).is_dir() {
        return Err(format!(
            "{program} is neither a python program nor a virtual environment: it has no bin/python"
        ));
    } else {
        program.to_owned()
    };
    let answer = ask(&program)?;
    if answer.implementation == "cpython" && answer.version == BUILD_ABI {
        Ok(Program {
            path: answer.executable,
            build: answer.build,
        })
    } else {
        Err(format!(
            "{program} is {} {}, but py_reactor was built against cpython {BUILD_ABI}; \
             choose another program or build again with PYO3_PYTHON={program}",
            answer.implementation, answer.version
        ))
    }
}

struct Answer {
    executable: String,
    implementation: String,
    version: String,
    build: String,
}

fn ask(program: &str) -> Result<Answer, String> {
    let output = Command::new(program)
        .args(["-I", "-S", "-c", QUESTION])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run the python program {program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    match lines.as_slice() {
        [executable, implementation, version, build] => Ok(Answer {
            executable: (*executable).to_owned(),
            implementation: (*implementation).to_owned(),
            version: (*version).to_owned(),
            build: (*build).to_owned(),
        }),
        _ => Err(format!(
            "the python program {program} did not answer ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        )),
    }
}
