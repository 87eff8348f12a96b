//! Term <-> Value.
//!
//! Pids, references and integers beyond 64 bit cross in the external term format: it keeps remote
//! handles whole and needs no arithmetic. What comes back from Python is read with the safe flag, so
//! nothing that Python sends can make a new atom.

use reactor_python::value::{
    BigInt, ConversionError, MAX_DEPTH, MAX_ELEMENTS, MAX_INTEGER_BYTES, Value,
};
use rustler::types::map::MapIterator;
use rustler::types::tuple::{get_tuple, make_tuple};
use rustler::{Atom, Binary, Encoder, Env, NewBinary, Term, TermType};

use crate::connections::Connection;

/// Version byte and tags of the external term format.
mod external {
    pub(super) const VERSION: u8 = 131;
    pub(super) const SMALL_BIG: u8 = 110;
    pub(super) const LARGE_BIG: u8 = 111;
    pub(super) const ATOM_LATIN1: u8 = 100;
    pub(super) const SMALL_ATOM_LATIN1: u8 = 115;
    pub(super) const ATOM_UTF8: u8 = 118;
    pub(super) const SMALL_ATOM_UTF8: u8 = 119;
    pub(super) const PIDS: [u8; 2] = [88, 103];
    pub(super) const REFERENCES: [u8; 2] = [90, 114];
}

mod atoms {
    rustler::atoms! { none, bytes }
}

/// Reads a term.
///
/// Containers are kept on a list of our own while they are read: this runs on schedulers, and the
/// stack of a dirty one has room for some 400 nested calls only.
///
/// # Errors
/// A [`ConversionError`] that names the kind of term that Python cannot have.
pub(crate) fn decode(term: Term<'_>) -> Result<Value, ConversionError> {
    let mut elements_left = MAX_ELEMENTS;
    let mut open: Vec<Container<'_>> = Vec::new();
    let mut part = begin(term)?;
    loop {
        match part {
            Part::Value(value) => match open.last_mut() {
                None => return Ok(value),
                Some(container) => container.values.push(value),
            },
            Part::Container(container) => {
                if open.len() == MAX_DEPTH {
                    return Err(ConversionError::TooDeep);
                }
                elements_left = elements_left
                    .checked_sub(container.size)
                    .ok_or(ConversionError::TooManyElements)?;
                open.push(*container);
            }
        }
        part = match open.last_mut().and_then(Container::next) {
            Some(term) => begin(term)?,
            // Something is open: a value that is in nothing was returned above.
            None => Part::Value(open.pop().map_or(Value::None, Container::close)),
        };
    }
}

/// Makes the term of a value. This too may run on a dirty scheduler: see [`decode`].
///
/// # Errors
/// [`ConversionError::UnknownAtom`], [`ConversionError::CollidingKeys`] or
/// [`ConversionError::BadHandle`].
pub(crate) fn encode<'a>(env: Env<'a>, value: &Value) -> Result<Term<'a>, ConversionError> {
    let mut open: Vec<Unfinished<'a, '_>> = Vec::new();
    let mut made = make(env, value)?;
    loop {
        match made {
            Made::Term(term) => match open.last_mut() {
                None => return Ok(term),
                Some(container) => container.terms.push(term),
            },
            Made::Container(container) => open.push(container),
        }
        made = match open.last_mut().and_then(|container| container.parts.next()) {
            Some(part) => make(env, part)?,
            // Something is open: a term that is in nothing was returned above.
            None => Made::Term(match open.pop() {
                Some(container) => container.close(env)?,
                None => atoms::none().encode(env),
            }),
        };
    }
}

/// A term is a value at once, or a container that is still to be read.
enum Part<'a> {
    Value(Value),
    Container(Box<Container<'a>>),
}

/// A container of which some elements were read.
struct Container<'a> {
    rest: Rest<'a>,
    size: usize,
    /// The elements so far; of a map, keys and values by turns.
    values: Vec<Value>,
}

/// What is still to be read.
enum Rest<'a> {
    List(Term<'a>),
    Tuple(std::vec::IntoIter<Term<'a>>),
    /// With the value of the key that was read last.
    Map(Box<MapIterator<'a>>, Option<Term<'a>>),
}

impl<'a> Container<'a> {
    fn next(&mut self) -> Option<Term<'a>> {
        match &mut self.rest {
            Rest::List(list) => {
                let (head, tail) = list.list_get_cell().ok()?;
                *list = tail;
                Some(head)
            }
            Rest::Tuple(terms) => terms.next(),
            Rest::Map(pairs, value) => value.take().or_else(|| {
                let (key, its_value) = pairs.next()?;
                *value = Some(its_value);
                Some(key)
            }),
        }
    }

    fn close(self) -> Value {
        match self.rest {
            Rest::List(_) => Value::List(self.values),
            Rest::Tuple(_) => Value::Tuple(self.values),
            Rest::Map(..) => {
                let mut pairs = Vec::with_capacity(self.size);
                let mut values = self.values.into_iter();
                while let (Some(key), Some(value)) = (values.next(), values.next()) {
                    pairs.push((key, value));
                }
                Value::Map(pairs)
            }
        }
    }
}

fn begin(term: Term<'_>) -> Result<Part<'_>, ConversionError> {
    match term.get_type() {
        TermType::List => begin_list(term),
        TermType::Tuple => begin_tuple(term),
        TermType::Map => begin_map(term),
        TermType::Atom => decode_atom(term).map(Part::Value),
        TermType::Binary => decode_text(term).map(Part::Value),
        TermType::Integer => decode_integer(term).map(Part::Value),
        TermType::Float => {
            let float = term.decode().map_err(|_| unknown())?;
            Ok(Part::Value(Value::Float(float)))
        }
        TermType::Pid => Ok(Part::Value(Value::Pid(external_form(term)))),
        TermType::Ref => Ok(Part::Value(match Connection::in_term(term) {
            Some(link) => Value::Connection(link),
            None => Value::Ref(external_form(term)),
        })),
        TermType::Fun => Err(unsupported("a fun")),
        TermType::Port => Err(unsupported("a port")),
        TermType::Unknown => Err(unknown()),
    }
}

fn begin_list(list: Term<'_>) -> Result<Part<'_>, ConversionError> {
    let size = list
        .list_length()
        .map_err(|_| ConversionError::ImproperList)?;
    Ok(container(Rest::List(list), size))
}

fn begin_tuple(tuple: Term<'_>) -> Result<Part<'_>, ConversionError> {
    let terms = get_tuple(tuple).map_err(|_| unknown())?;
    if let Some(bytes) = tagged_bytes(&terms) {
        return Ok(Part::Value(Value::Bytes(bytes.as_slice().to_vec())));
    }
    let size = terms.len();
    Ok(container(Rest::Tuple(terms.into_iter()), size))
}

fn begin_map(map: Term<'_>) -> Result<Part<'_>, ConversionError> {
    let size = map.map_size().map_err(|_| unknown())?;
    let pairs = MapIterator::new(map).ok_or_else(unknown)?;
    Ok(container(Rest::Map(Box::new(pairs), None), size))
}

/// The room for the elements is not taken at once: a size beyond the limit is refused first.
fn container(rest: Rest<'_>, size: usize) -> Part<'_> {
    Part::Container(Box::new(Container {
        rest,
        size,
        values: Vec::new(),
    }))
}

fn external_form(term: Term<'_>) -> Vec<u8> {
    term.to_binary().as_slice().to_vec()
}

fn decode_atom(term: Term<'_>) -> Result<Value, ConversionError> {
    let name = atom_name(term).ok_or_else(unknown)?;
    Ok(match name.as_str() {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "none" | "undefined" | "nil" => Value::None,
        _ => Value::Atom(name),
    })
}

/// Before NIF 2.17 the atom functions know Latin-1 only; the external format knows every name.
fn atom_name(term: Term<'_>) -> Option<String> {
    if let Ok(name) = term.atom_to_string() {
        return Some(name);
    }
    let bytes = term.to_binary();
    let bytes = bytes.as_slice();
    let name = match *bytes.get(1)? {
        external::SMALL_ATOM_UTF8 | external::SMALL_ATOM_LATIN1 => bytes.get(3..)?,
        external::ATOM_UTF8 | external::ATOM_LATIN1 => bytes.get(4..)?,
        _ => return None,
    };
    String::from_utf8(name.to_vec()).ok()
}

fn decode_text(term: Term<'_>) -> Result<Value, ConversionError> {
    let binary = Binary::from_term(term)
        .map_err(|_| unsupported("a bitstring that is no whole number of bytes"))?;
    match std::str::from_utf8(binary.as_slice()) {
        Ok(text) => Ok(Value::Str(text.to_owned())),
        Err(error) => Err(ConversionError::InvalidUtf8(error.valid_up_to())),
    }
}

fn decode_integer(term: Term<'_>) -> Result<Value, ConversionError> {
    if let Ok(value) = term.decode::<i64>() {
        return Ok(Value::Int(value));
    }
    let bytes = term.to_binary();
    let bytes = bytes.as_slice();
    let (sign, magnitude) = match bytes.get(1) {
        Some(&external::SMALL_BIG) => (bytes.get(3), bytes.get(4..)),
        Some(&external::LARGE_BIG) => (bytes.get(6), bytes.get(7..)),
        _ => (None, None),
    };
    let (Some(sign), Some(magnitude)) = (sign, magnitude) else {
        return Err(unknown());
    };
    if magnitude.len() > MAX_INTEGER_BYTES {
        return Err(ConversionError::IntegerTooLarge);
    }
    Ok(Value::BigInt(BigInt {
        negative: *sign != 0,
        magnitude: magnitude.to_vec(),
    }))
}

/// The binary of `{bytes, Binary}`.
fn tagged_bytes<'a>(terms: &[Term<'a>]) -> Option<Binary<'a>> {
    let &[tag, binary] = terms else {
        return None;
    };
    if atoms::bytes() == tag {
        Binary::from_term(binary).ok()
    } else {
        None
    }
}

/// A value becomes a term at once, or is a container whose parts are still to be made.
enum Made<'a, 'v> {
    Term(Term<'a>),
    Container(Unfinished<'a, 'v>),
}

/// A container of which some elements were made.
struct Unfinished<'a, 'v> {
    kind: Kind,
    parts: Parts<'v>,
    /// The elements so far; of a map, keys and values by turns.
    terms: Vec<Term<'a>>,
}

enum Kind {
    List,
    Tuple,
    Map,
}

/// What is still to be made.
enum Parts<'v> {
    Items(std::slice::Iter<'v, Value>),
    /// With the value of the key that was made last.
    Pairs(std::slice::Iter<'v, (Value, Value)>, Option<&'v Value>),
}

impl<'v> Iterator for Parts<'v> {
    type Item = &'v Value;

    fn next(&mut self) -> Option<&'v Value> {
        match self {
            Parts::Items(items) => items.next(),
            Parts::Pairs(pairs, value) => value.take().or_else(|| {
                let (key, its_value) = pairs.next()?;
                *value = Some(its_value);
                Some(key)
            }),
        }
    }
}

impl<'a> Unfinished<'a, '_> {
    fn close(self, env: Env<'a>) -> Result<Term<'a>, ConversionError> {
        match self.kind {
            Kind::List => Ok(self.terms.encode(env)),
            Kind::Tuple => Ok(make_tuple(env, &self.terms)),
            Kind::Map => {
                let keys: Vec<_> = self.terms.iter().copied().step_by(2).collect();
                let values: Vec<_> = self.terms.iter().copied().skip(1).step_by(2).collect();
                Term::map_from_term_arrays(env, &keys, &values)
                    .map_err(|_| ConversionError::CollidingKeys)
            }
        }
    }
}

fn make<'a, 'v>(env: Env<'a>, value: &'v Value) -> Result<Made<'a, 'v>, ConversionError> {
    Ok(Made::Term(match value {
        Value::None => atoms::none().encode(env),
        Value::Bool(value) => value.encode(env),
        Value::Int(value) => value.encode(env),
        Value::BigInt(value) => encode_big(env, value)?,
        Value::Float(value) => value.encode(env),
        Value::Atom(name) => encode_atom(env, name)?,
        Value::Str(text) => encode_binary(env, text.as_bytes()),
        Value::Bytes(bytes) => encode_binary(env, bytes),
        Value::Pid(bytes) => encode_handle(env, bytes, external::PIDS)?,
        Value::Ref(bytes) => encode_handle(env, bytes, external::REFERENCES)?,
        Value::Connection(link) => {
            let connection = Connection::of(link).ok_or(ConversionError::BadHandle)?;
            connection.encode(env)
        }
        Value::List(items) => return Ok(unfinished(Kind::List, Parts::Items(items.iter()))),
        Value::Tuple(items) => return Ok(unfinished(Kind::Tuple, Parts::Items(items.iter()))),
        Value::Map(pairs) => return Ok(unfinished(Kind::Map, Parts::Pairs(pairs.iter(), None))),
    }))
}

fn unfinished<'a, 'v>(kind: Kind, parts: Parts<'v>) -> Made<'a, 'v> {
    Made::Container(Unfinished {
        kind,
        parts,
        terms: Vec::new(),
    })
}

fn encode_binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    NewBinary::from_slice(env, bytes).into()
}

fn encode_atom<'a>(env: Env<'a>, name: &str) -> Result<Term<'a>, ConversionError> {
    existing_atom(env, name).ok_or_else(|| ConversionError::UnknownAtom(name.to_owned()))
}

/// The atom of that name, if it exists already.
pub(crate) fn existing_atom<'a>(env: Env<'a>, name: &str) -> Option<Term<'a>> {
    if name.is_ascii() {
        let atom = Atom::existing_from_bytes(env, name.as_bytes()).ok()?;
        return Some(atom.encode(env));
    }
    let length = u16::try_from(name.len()).ok()?;
    let mut bytes = vec![external::VERSION, external::ATOM_UTF8];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(name.as_bytes());
    decode_external(env, &bytes)
}

fn encode_big<'a>(env: Env<'a>, value: &BigInt) -> Result<Term<'a>, ConversionError> {
    let length =
        u32::try_from(value.magnitude.len()).map_err(|_| ConversionError::IntegerTooLarge)?;
    let mut bytes = Vec::with_capacity(value.magnitude.len() + 7);
    bytes.extend_from_slice(&[external::VERSION, external::LARGE_BIG]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.push(u8::from(value.negative));
    bytes.extend_from_slice(&value.magnitude);
    decode_external(env, &bytes).ok_or(ConversionError::IntegerTooLarge)
}

/// The tag is checked first: Python may have made up the bytes, even a compressed gigabyte.
fn encode_handle<'a>(
    env: Env<'a>,
    bytes: &[u8],
    tags: [u8; 2],
) -> Result<Term<'a>, ConversionError> {
    bytes
        .get(1)
        .filter(|tag| tags.contains(tag))
        .and_then(|_| decode_external(env, bytes))
        .ok_or(ConversionError::BadHandle)
}

fn decode_external<'a>(env: Env<'a>, bytes: &[u8]) -> Option<Term<'a>> {
    let (term, _) = env.binary_to_term(bytes)?;
    Some(term)
}

fn unsupported(kind: &str) -> ConversionError {
    ConversionError::Unsupported(kind.to_owned())
}

fn unknown() -> ConversionError {
    unsupported("a term of unknown kind")
}
