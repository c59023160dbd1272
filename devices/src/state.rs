//! Devices' states, as they are saved and put back.
//!
//! A saved state ([`Saved`]) says of which device and which version of its description it is, and its fields have
//! names: what does not fit is refused in words ([`Misfit`]), and nothing is done then. What is saved is what the guest
//! can tell by looking; what a host lends (descriptors, threads, lines) is made anew by whoever makes the device.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A device's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The device's name.
    pub device: String,
    /// Version of the description of its fields.
    pub version: u32,
    /// By name.
    pub fields: Value,
}

/// A state is not of this device.
#[derive(Debug, thiserror::Error)]
pub enum Misfit {
    /// Of another kind.
    #[error("a state of '{found}' does not fit '{device}'")]
    Device {
        /// What the state is of.
        found: String,
        /// What it is to be put into.
        device: &'static str,
    },
    /// From before or after this program.
    #[error("version {found} of the state of '{device}' is not known, which is {known} here")]
    Version {
        /// The device.
        device: &'static str,
        /// What the state has.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// A field is missing, or cannot be what it is.
    #[error("the state of '{device}' is damaged: {why}")]
    Damaged {
        /// The device.
        device: &'static str,
        /// In words.
        why: String,
    },
}

/// A device's state is not to be had now: one of its threads has it, in a call of the host's that does not end.
#[derive(Debug, thiserror::Error)]
#[error("the state of '{device}' is not to be had: the host does not answer what it has asked of it")]
pub struct Unanswered {
    /// The device.
    pub device: &'static str,
}

impl Saved {
    /// The state of a device, by a description of this version.
    ///
    /// # Panics
    /// When a field has no form that can be saved: that is up to who writes a device.
    pub fn new(device: &'static str, version: u32, fields: &impl Serialize) -> Saved {
        let fields = serde_json::to_value(fields).expect("a device's state can be saved");
        Saved { device: device.into(), version, fields }
    }

    /// The fields, if they are of this device and version.
    ///
    /// # Errors
    /// [`Misfit`].
    pub fn fields<T: DeserializeOwned>(&self, device: &'static str, version: u32) -> Result<T, Misfit> {
        if self.device != device {
            return Err(Misfit::Device { found: self.device.clone(), device });
        }
        if self.version != version {
            return Err(Misfit::Version { device, found: self.version, known: version });
        }
        T::deserialize(&self.fields).map_err(|error| Misfit::Damaged { device, why: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        let saved = Saved::new("clock", 2, &(1u8, "two"));
        assert_eq!(saved.fields::<(u8, String)>("clock", 2).unwrap(), (1, "two".into()));
        let words = |device, version| saved.fields::<(u8, u8)>(device, version).unwrap_err().to_string();
        assert_eq!(words("door", 2), "a state of 'clock' does not fit 'door'");
        assert_eq!(words("clock", 1), "version 2 of the state of 'clock' is not known, which is 1 here");
        assert!(words("clock", 2).starts_with("the state of 'clock' is damaged: invalid type"));
        let text = serde_json::to_string(&saved).unwrap();
        assert_eq!(serde_json::from_str::<Saved>(&text).unwrap(), saved);
    }
}
