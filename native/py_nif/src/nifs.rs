//! Every NIF: decode, one call, encode.
