//! Term <-> Value.
