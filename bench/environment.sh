# shellcheck shell=bash
# What script/bench and script/prove need beside the build, for them to source: descriptors, and a throw-away Python
# environment with uvloop and others; the servers that cargo does not build.

# More than this only makes the BEAM allocate larger tables.
descriptors_wanted=65536
# Ignored by git; may be deleted at any time.
environment=bench/results/tmp/.venv

# Two at once would disturb each other, and write the same files. The lock goes with the process that this script becomes;
# where there is no flock(1) nobody waits.
alone() { # CALLER
  command -v flock >/dev/null || return 0
  mkdir -p bench/results/tmp
  exec 9>bench/results/tmp/lock
  flock -n 9 || { echo "$1: waiting for another of script/bench, script/prove, bench/instructions to end"; flock 9; }
}

raise_descriptor_limit() { # CALLER NEEDED
  local hard
  hard=$(ulimit -H -n)
  if [ "$hard" = unlimited ] || [ "$hard" -gt $descriptors_wanted ]; then hard=$descriptors_wanted; fi
  [ "$hard" -ge "$2" ] || { echo "$1: $2 descriptors are needed and the hard limit is $hard" >&2; exit 1; }
  ulimit -S -n "$hard"
}

# For the Python that py_reactor is built against, so that all servers compare the same one.
throw_away_environment() { # CALLER
  local stamp
  stamp="$PYO3_PYTHON $("$PYO3_PYTHON" -V) $(cksum <bench/requirements.txt)"
  [ "$stamp" != "$(cat $environment/made-from 2>/dev/null)" ] || return 0
  echo "$1: making a throw-away Python environment"
  rm -rf $environment
  "$PYO3_PYTHON" -m venv $environment || { echo "$1: $PYO3_PYTHON cannot make a virtual environment" >&2; exit 1; }
  $environment/bin/python -m pip install -q --disable-pip-version-check -r bench/requirements.txt ||
    { echo "$1: pip could not install bench/requirements.txt" >&2; exit 1; }
  echo "$stamp" >$environment/made-from
}

# What maturin puts into a wheel, as a folder for PYTHONPATH. A target folder of its own: all that depends on pyo3 is
# another thing without libpython.
plain_python() {
  local plain=bench/results/tmp/plain
  PYO3_BUILD_EXTENSION_MODULE=1 cargo build --release --locked --package py_ext --target-dir target/extension
  rm -rf $plain
  mkdir -p $plain/_erlang
  cp priv/python/_erlang/*.py $plain/_erlang/
  cp target/extension/release/lib_native.so $plain/_erlang/_native.so
  ln -s "$PWD/priv/python/erlang" $plain/erlang
}

epoll_server() {
  local release=${CARGO_TARGET_DIR:-target}/release
  mkdir -p "$release"
  cc -std=c11 -O2 -Wall -Wextra -o "$release/epoll_server" bench/servers/epoll_server.c
}
