# shellcheck shell=bash
# What the native build needs, for native/build and the scripts in script/ to source: cargo of a certain age
# and a Python with a shared library. Each *_problem function prints what is wrong, or nothing.

# A fresh rustup is not on PATH before the next login.
command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

version_at_least() { # HAVE WANTED
  printf '%s\n%s\n' "$2" "$1" | sort -V -C
}

rust_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }

cargo_problem() {
  local wanted have
  wanted=$(rust_wanted)
  if ! have=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || [ -z "$have" ]; then
    echo "Rust $wanted or newer is needed and cargo is missing: install it from https://rustup.rs"
  elif ! version_at_least "$have" "$wanted"; then
    echo "Rust $wanted or newer is needed and $(command -v cargo) is $have: rustup update stable, or see https://rustup.rs"
  fi
}

# Exports PYO3_PYTHON, so that every cargo command builds against the same Python: what the variable names, else
# python3 on PATH. A name without a folder is resolved to the program itself: a pyenv shim is another Python in
# another folder, and a virtual environment may be gone tomorrow. What is wrong with it python_problem tells.
choose_python() {
  local name=${PYO3_PYTHON:-python3} path
  case $name in
    */*) path=$name ;;
    *) path=$("$name" -c 'import os, sys; print(os.path.realpath(sys._base_executable))' 2>/dev/null) || path=$name ;;
  esac
  export PYO3_PYTHON=$path
}

python_problem() {
  local report
  if ! command -v "$PYO3_PYTHON" >/dev/null; then
    echo "Python 3.11 or newer is needed and $PYO3_PYTHON is missing: install python3 and python3-dev, or name another with PYO3_PYTHON"
  elif ! report=$("$PYO3_PYTHON" native/check_python.py 2>&1); then
    echo "$report"
  fi
}
