//! Values that cross between Erlang and Python, owned by neither.
//!
//! A [`Value`] is what is left of an Erlang term or a Python object on its way to the other side. It
//! may wait in queues and cross threads; neither a term nor a Python object may. Everything here
//! belongs to one interpreter at a time: the few Python classes that matter come in as [`Types`],
//! never from a static, because interpreters with their own GIL share no objects.
//!
//! Reading a Python object runs no Python code of the user: subclasses are read as their base, and
//! handles are recognised by their exact class.

use std::fmt;
use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PyMemoryView, PySet,
    PyString, PyTuple, PyType,
};
use reactor::Link;

use crate::handle;

/// Containers inside containers. Python lists may contain themselves; nobody nests this deep.
pub const MAX_DEPTH: usize = 512;

/// Elements of one value, all containers together: some hundred megabytes at most.
pub const MAX_ELEMENTS: usize = 4_000_000;

/// Bytes of an integer's magnitude. OTP 26 and later have no integers of more than 65535 words.
pub const MAX_INTEGER_BYTES: usize = 65_535 * 8;

/// An Erlang term or Python object, without its home.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Python's None; the atom `none` in Erlang, where `undefined` and `nil` mean it too.
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bit.
    BigInt(BigInt),
    Float(f64),
    /// Any other atom: a str in Python.
    Atom(String),
    /// Text: a binary in Erlang, a str in Python.
    Str(String),
    /// Bytes: `{bytes, Binary}` on the way from Erlang, a plain binary on the way to it.
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Map(Vec<(Value, Value)>),
    /// A process identifier, in the external term format.
    Pid(Vec<u8>),
    /// A reference, in the external term format.
    Ref(Vec<u8>),
    /// A connection of a reactor.
    Connection(Arc<Link>),
}

/// The sign and magnitude of a large integer, least significant byte first.
#[derive(Clone, Debug, PartialEq)]
pub struct BigInt {
    pub negative: bool,
    pub magnitude: Vec<u8>,
}

/// Why a value could not cross.
#[derive(Clone, Debug, PartialEq)]
pub enum ConversionError {
    /// A Python type or a kind of term that has no counterpart.
    Unsupported(String),
    /// The keys of a map or dict that are one and the same key on the other side.
    CollidingKeys,
    /// A map key that cannot be the key of a dict, with its Python type.
    UnhashableKey(String),
    /// A binary that is no UTF-8, with the offset of the first bad byte.
    InvalidUtf8(usize),
    LoneSurrogates,
    /// NaN or infinite.
    NotFinite,
    IntegerTooLarge,
    TooDeep,
    TooManyElements,
    ImproperList,
    /// An `erlang.Atom` whose atom does not exist.
    UnknownAtom(String),
    /// An `erlang.Pid` or `erlang.Ref` that was not made by Erlang.
    BadHandle,
}

impl ConversionError {
    /// The name of the Python exception class that says the same.
    pub fn class(&self) -> &'static str {
        if self.is_about_type() {
            "TypeError"
        } else {
            "ValueError"
        }
    }

    fn is_about_type(&self) -> bool {
        matches!(self, Self::Unsupported(_) | Self::UnhashableKey(_))
    }
}

impl fmt::Display for ConversionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(kind) => write!(f, "{kind} cannot cross between Erlang and Python"),
            Self::CollidingKeys => write!(f, "two keys of the map become the same key"),
            Self::UnhashableKey(kind) => write!(f, "{kind} cannot be the key of a dict"),
            Self::InvalidUtf8(offset) => write!(
                f,
                "binary is not valid UTF-8 at byte {offset}; wrap it as {{bytes, Binary}}"
            ),
            Self::LoneSurrogates => write!(f, "str with lone surrogates has no UTF-8 form"),
            Self::NotFinite => write!(f, "float is not finite, Erlang has no such number"),
            Self::IntegerTooLarge => {
                write!(f, "integer of more than {MAX_INTEGER_BYTES} bytes")
            }
            Self::TooDeep => write!(f, "nested deeper than {MAX_DEPTH} levels"),
            Self::TooManyElements => write!(f, "more than {MAX_ELEMENTS} elements"),
            Self::ImproperList => write!(f, "improper list"),
            Self::UnknownAtom(name) => write!(f, "there is no atom {name:?}"),
            Self::BadHandle => write!(f, "not a handle that Erlang made"),
        }
    }
}

impl std::error::Error for ConversionError {}

impl From<ConversionError> for PyErr {
    fn from(error: ConversionError) -> PyErr {
        let message = error.to_string();
        if error.is_about_type() {
            PyTypeError::new_err(message)
        } else {
            PyValueError::new_err(message)
        }
    }
}

/// The Python classes of one interpreter that stand for Erlang's own kinds of term.
pub struct Types {
    pid: Py<PyType>,
    reference: Py<PyType>,
    atom: Py<PyType>,
    connection: Py<PyType>,
}

impl Types {
    /// Looks the classes up in the `erlang` package of the current interpreter.
    pub fn load(py: Python<'_>) -> PyResult<Types> {
        let package = py.import("erlang")?;
        let class = |name: &str| -> PyResult<Py<PyType>> {
            Ok(package.getattr(name)?.cast_into::<PyType>()?.unbind())
        };
        Ok(Types {
            pid: class("Pid")?,
            reference: class("Ref")?,
            atom: class("Atom")?,
            connection: class("Connection")?,
        })
    }
}

/// Makes the Python object of a value.
///
/// # Errors
/// TypeError for a map key that cannot be hashed, ValueError for colliding keys, and whatever Python
/// raises when it has no memory.
pub fn to_python<'py>(
    py: Python<'py>,
    value: &Value,
    types: &Types,
) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::None => py.None().into_bound(py),
        Value::Bool(value) => PyBool::new(py, *value).to_owned().into_any(),
        Value::Int(value) => value.into_pyobject(py)?.into_any(),
        Value::BigInt(value) => big_to_python(py, value)?,
        Value::Float(value) => PyFloat::new(py, *value).into_any(),
        Value::Atom(text) | Value::Str(text) => PyString::new(py, text).into_any(),
        Value::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
        Value::List(items) => {
            let items = all_to_python(py, items, types)?;
            PyList::new(py, items)?.into_any()
        }
        Value::Tuple(items) => {
            let items = all_to_python(py, items, types)?;
            PyTuple::new(py, items)?.into_any()
        }
        Value::Map(pairs) => map_to_python(py, pairs, types)?.into_any(),
        Value::Pid(external) => handle_to_python(py, &types.pid, external)?,
        Value::Ref(external) => handle_to_python(py, &types.reference, external)?,
        Value::Connection(link) => {
            let class = types.connection.bind(py);
            class.call1((handle::linked(py, link)?,))?
        }
    })
}

fn all_to_python<'py>(
    py: Python<'py>,
    items: &[Value],
    types: &Types,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    items
        .iter()
        .map(|item| to_python(py, item, types))
        .collect()
}

/// Makes the dict of a map's pairs.
///
/// # Errors
/// As [`to_python`].
pub fn map_to_python<'py>(
    py: Python<'py>,
    pairs: &[(Value, Value)],
    types: &Types,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (key, value) in pairs {
        let key = to_python(py, key, types)?;
        if key.hash().is_err() {
            return Err(ConversionError::UnhashableKey(type_name(&key)).into());
        }
        dict.set_item(key, to_python(py, value, types)?)?;
    }
    if dict.len() == pairs.len() {
        Ok(dict)
    } else {
        Err(ConversionError::CollidingKeys.into())
    }
}

fn big_to_python<'py>(py: Python<'py>, value: &BigInt) -> PyResult<Bound<'py, PyAny>> {
    let bytes = PyBytes::new(py, &value.magnitude);
    let integer = py
        .get_type::<PyInt>()
        .call_method1("from_bytes", (bytes, "little"))?;
    if value.negative {
        integer.neg()
    } else {
        Ok(integer)
    }
}

fn handle_to_python<'py>(
    py: Python<'py>,
    class: &Py<PyType>,
    external: &[u8],
) -> PyResult<Bound<'py, PyAny>> {
    class.bind(py).call1((PyBytes::new(py, external),))
}

/// Reads a Python object.
///
/// # Errors
/// A [`ConversionError`] that names what cannot cross.
pub fn from_python(object: &Bound<'_, PyAny>, types: &Types) -> Result<Value, ConversionError> {
    Reader {
        types,
        depth_left: MAX_DEPTH,
        elements_left: MAX_ELEMENTS,
    }
    .read(object)
}

struct Reader<'a> {
    types: &'a Types,
    depth_left: usize,
    elements_left: usize,
}

impl Reader<'_> {
    fn read(&mut self, object: &Bound<'_, PyAny>) -> Result<Value, ConversionError> {
        if object.is_none() {
            return Ok(Value::None);
        }
        // bool is a subclass of int, so it comes first.
        if let Ok(flag) = object.cast::<PyBool>() {
            return Ok(Value::Bool(flag.is_true()));
        }
        if let Ok(text) = object.cast::<PyString>() {
            return Ok(Value::Str(read_str(text)?));
        }
        if let Ok(integer) = object.cast::<PyInt>() {
            return read_int(integer);
        }
        if let Ok(float) = object.cast::<PyFloat>() {
            return read_float(float.value());
        }
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Value::Bytes(bytes.as_bytes().to_vec()));
        }
        if let Ok(bytes) = object.cast::<PyByteArray>() {
            return Ok(Value::Bytes(bytes.to_vec()));
        }
        if let Ok(view) = object.cast::<PyMemoryView>() {
            return read_memoryview(view);
        }
        self.read_handle_or_container(object)
    }

    fn read_handle_or_container(
        &mut self,
        object: &Bound<'_, PyAny>,
    ) -> Result<Value, ConversionError> {
        let py = object.py();
        let class = object.get_type();
        if class.is(self.types.pid.bind(py)) {
            return Ok(Value::Pid(handle_bytes(object)?));
        }
        if class.is(self.types.reference.bind(py)) {
            return Ok(Value::Ref(handle_bytes(object)?));
        }
        if class.is(self.types.atom.bind(py)) {
            return Ok(Value::Atom(atom_name(object)?));
        }
        if class.is(self.types.connection.bind(py)) {
            return Ok(Value::Connection(connection_link(object)?));
        }
        if self.depth_left == 0 {
            return Err(ConversionError::TooDeep);
        }
        self.depth_left -= 1;
        let value = self.read_container(object)?;
        self.depth_left += 1;
        Ok(value)
    }

    fn read_container(&mut self, object: &Bound<'_, PyAny>) -> Result<Value, ConversionError> {
        if let Ok(list) = object.cast::<PyList>() {
            return Ok(Value::List(self.read_all(list.len(), list.iter())?));
        }
        if let Ok(tuple) = object.cast::<PyTuple>() {
            return Ok(Value::Tuple(self.read_all(tuple.len(), tuple.iter())?));
        }
        if let Ok(dict) = object.cast::<PyDict>() {
            self.take(dict.len())?;
            let mut pairs = Vec::with_capacity(dict.len());
            for (key, value) in dict.iter() {
                pairs.push((self.read(&key)?, self.read(&value)?));
            }
            return Ok(Value::Map(pairs));
        }
        if object.cast::<PySet>().is_ok() || object.cast::<PyFrozenSet>().is_ok() {
            // A set's own iterator may be overridden; a copy made by the base class cannot be.
            let copy = copy_of_set(object).map_err(|_| unsupported(object))?;
            return Ok(Value::List(self.read_all(copy.len(), copy.iter())?));
        }
        Err(unsupported(object))
    }

    fn read_all<'py>(
        &mut self,
        count: usize,
        items: impl Iterator<Item = Bound<'py, PyAny>>,
    ) -> Result<Vec<Value>, ConversionError> {
        self.take(count)?;
        let mut values = Vec::with_capacity(count);
        for item in items {
            values.push(self.read(&item)?);
        }
        Ok(values)
    }

    fn take(&mut self, count: usize) -> Result<(), ConversionError> {
        self.elements_left = self
            .elements_left
            .checked_sub(count)
            .ok_or(ConversionError::TooManyElements)?;
        Ok(())
    }
}

fn read_str(text: &Bound<'_, PyString>) -> Result<String, ConversionError> {
    match text.to_str() {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(ConversionError::LoneSurrogates),
    }
}

fn read_float(value: f64) -> Result<Value, ConversionError> {
    if value.is_finite() {
        Ok(Value::Float(value))
    } else {
        Err(ConversionError::NotFinite)
    }
}

fn read_int(integer: &Bound<'_, PyInt>) -> Result<Value, ConversionError> {
    match integer.extract::<i64>() {
        Ok(value) => Ok(Value::Int(value)),
        Err(_) => read_big(integer).unwrap_or(Err(ConversionError::IntegerTooLarge)),
    }
}

/// Reads an integer beyond 64 bit with the methods of int itself, not those of a subclass.
fn read_big(integer: &Bound<'_, PyInt>) -> PyResult<Result<Value, ConversionError>> {
    let int = integer.py().get_type::<PyInt>();
    let bits: usize = int.call_method1("bit_length", (integer,))?.extract()?;
    let length = bits.div_ceil(8);
    if length > MAX_INTEGER_BYTES {
        return Ok(Err(ConversionError::IntegerTooLarge));
    }
    let negative = int.call_method1("__lt__", (integer, 0))?.is_truthy()?;
    let absolute = int.call_method1("__abs__", (integer,))?;
    let bytes = int.call_method1("to_bytes", (absolute, length, "little"))?;
    let magnitude = bytes.cast::<PyBytes>()?.as_bytes().to_vec();
    Ok(Ok(Value::BigInt(BigInt {
        negative,
        magnitude,
    })))
}

fn read_memoryview(view: &Bound<'_, PyMemoryView>) -> Result<Value, ConversionError> {
    let bytes = view
        .call_method0("tobytes")
        .map_err(|_| ConversionError::Unsupported("a released memoryview".to_owned()))?;
    match bytes.cast::<PyBytes>() {
        Ok(bytes) => Ok(Value::Bytes(bytes.as_bytes().to_vec())),
        Err(_) => Err(unsupported(view)),
    }
}

fn copy_of_set<'py>(set: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyFrozenSet>> {
    let copy = set.py().get_type::<PyFrozenSet>().call1((set,))?;
    Ok(copy.cast_into::<PyFrozenSet>()?)
}

fn handle_bytes(handle: &Bound<'_, PyAny>) -> Result<Vec<u8>, ConversionError> {
    let external = handle
        .getattr("_external")
        .map_err(|_| ConversionError::BadHandle)?;
    match external.cast::<PyBytes>() {
        Ok(bytes) => Ok(bytes.as_bytes().to_vec()),
        Err(_) => Err(ConversionError::BadHandle),
    }
}

fn connection_link(connection: &Bound<'_, PyAny>) -> Result<Arc<Link>, ConversionError> {
    let handle = connection.getattr("_handle");
    let handle = handle.map_err(|_| ConversionError::BadHandle)?;
    let link = handle::link(&handle).map_err(|_| ConversionError::BadHandle)?;
    Ok(Arc::clone(link))
}

fn atom_name(atom: &Bound<'_, PyAny>) -> Result<String, ConversionError> {
    let name = atom
        .getattr("_name")
        .map_err(|_| ConversionError::BadHandle)?;
    match name.cast::<PyString>() {
        Ok(name) => read_str(name),
        Err(_) => Err(ConversionError::BadHandle),
    }
}

fn unsupported(object: &Bound<'_, PyAny>) -> ConversionError {
    ConversionError::Unsupported(type_name(object))
}

/// The name of an object's type; never its `str()`, which is the user's code and the user's data.
fn type_name(object: &Bound<'_, PyAny>) -> String {
    match object.get_type().fully_qualified_name() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => "an object of unknown type".to_owned(),
    }
}
