//! How a listener makes its protocols.
//!
//! A recipe is made once, where the listener is, and goes along with each of its connections.
//! Each worker imports what it names when it first meets it: so a context that is started again
//! needs nobody to tell it, and one with an interpreter of its own has its own classes.

use std::collections::HashMap;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

use crate::exception::class_name;
use crate::handler::Reply;
use crate::value::{Types, Value, map_to_python};

/// How the protocols of one listener are made.
#[derive(Debug)]
pub struct Recipe {
    /// Names the listener among all that this process ever has.
    pub id: u64,
    /// What is called for each connection; `None`: the factory that was set with
    /// `set_protocol_factory`.
    pub protocol: Option<Named>,
    /// What `client_info` says of each client.
    pub info: Vec<(Value, Value)>,
}

/// A class, or another callable, in a module.
#[derive(Debug)]
pub struct Named {
    /// The module, imported in each context.
    pub module: String,
    /// Its name in there; may be dotted.
    pub name: String,
    /// Arguments for each call; the keys are names.
    pub kwargs: Vec<(Value, Value)>,
}

/// What a worker is asked to do besides serving connections.
pub enum Errand {
    /// Import what a recipe names, and tell what came of it.
    Prepare {
        /// The recipe.
        recipe: Arc<Recipe>,
        /// Called once, unless the context ends first.
        reply: Reply,
    },
    /// Forget a recipe, of which no connection will come any more.
    Forget {
        /// Its number.
        id: u64,
    },
}

/// What makes the protocols of one listener.
#[derive(Clone)]
pub(crate) struct Factory<'py> {
    callable: Bound<'py, PyAny>,
    kwargs: Option<Bound<'py, PyDict>>,
}

impl<'py> Factory<'py> {
    /// A callable without arguments.
    pub(crate) const fn plain(callable: Bound<'py, PyAny>) -> Self {
        Self {
            callable,
            kwargs: None,
        }
    }

    fn import(py: Python<'py>, named: &Named, types: &Types) -> PyResult<Self> {
        let module = py.import("erlang.reactor")?;
        let names = (named.module.as_str(), named.name.as_str());
        let callable = module.call_method1("_protocol_named", names)?;
        let kwargs = match named.kwargs.as_slice() {
            [] => None,
            kwargs => Some(map_to_python(py, kwargs, types)?),
        };
        Ok(Self { callable, kwargs })
    }

    /// Makes one.
    pub(crate) fn call(&self) -> PyResult<Bound<'py, PyAny>> {
        match &self.kwargs {
            None => self.callable.call0(),
            Some(kwargs) => self.callable.call((), Some(kwargs)),
        }
    }

    /// What is called.
    pub(crate) const fn callable(&self) -> &Bound<'py, PyAny> {
        &self.callable
    }

    /// The name of what is called, if that is a class.
    pub(crate) fn name(&self) -> String {
        let class = self.callable.cast::<PyType>();
        class.map_or_else(|_| "?".to_owned(), class_name)
    }
}

/// The factories that one worker knows.
#[derive(Default)]
pub(crate) struct Factories<'py>(HashMap<u64, Factory<'py>>);

impl<'py> Factories<'py> {
    /// That of a recipe, imported if need be.
    pub(crate) fn of(
        &mut self,
        py: Python<'py>,
        id: u64,
        named: &Named,
        types: &Types,
    ) -> PyResult<&Factory<'py>> {
        use std::collections::hash_map::Entry;
        match self.0.entry(id) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(Factory::import(py, named, types)?)),
        }
    }

    pub(crate) fn forget(&mut self, id: u64) {
        self.0.remove(&id);
    }
}
