//! The guest's tasks where nobody knows Linux: the same calls, and there are none to call them on.

use super::chosen::Chosen;
use super::ids::Ids;
use crate::view::View;
use std::convert::Infallible;

/// The tasks of a stop: none are listed.
#[derive(Debug)]
pub struct Listed(Infallible);

impl Listed {
    /// Nobody knows them.
    ///
    /// # Errors
    /// In words, that it is so.
    pub fn of(_view: &View<'_>, _ids: &mut Ids) -> Result<Listed, String> {
        Err("this debugger was built without what it knows of Linux".into())
    }

    /// Nobody calls it.
    pub fn ids(&self) -> &[u32] {
        match self.0 {}
    }

    /// Nobody calls it.
    pub fn has(&self, _id: u32) -> bool {
        match self.0 {}
    }

    /// Nobody calls it.
    pub fn left_out(&self) -> usize {
        match self.0 {}
    }

    /// Nobody calls it.
    pub fn remarks(&self) -> &[String] {
        match self.0 {}
    }

    /// Nobody calls it.
    pub fn on(&self, _vcpu: u32) -> Option<&str> {
        match self.0 {}
    }

    /// Nobody calls it.
    pub fn told(&self, _id: u32) -> Option<(String, String)> {
        match self.0 {}
    }

    /// Nobody calls it.
    pub fn choose(&self, _view: &View<'_>, _id: u32) -> Option<Chosen> {
        match self.0 {}
    }
}
