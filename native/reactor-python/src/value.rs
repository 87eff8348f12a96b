//! Values that cross between Erlang and Python, owned by neither.
