//! What has been read of the guest's Linux kernel, and does not change as long as it is that kernel.

use crate::linux::{Symbols, Types, VmCoreInfo};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of one kernel.
#[derive(Debug)]
struct Facts {
    /// The kernel's description of itself, where it has moved to included: what tells it from others.
    of: VmCoreInfo,
    symbols: Option<Lasting<Symbols>>,
    types: Option<Lasting<Types>>,
}

/// What was found, or in words why it will not be found either when it is looked for again.
type Lasting<T> = Result<Arc<T>, String>;

/// Keeps what one command has read for the next one. Of one kernel: that which was asked about last.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Option<Facts>>);

impl Kept {
    /// Its symbols, which `read` reads if they are not known. What that says within is kept, and what it says without, as
    /// that it was broken off, is not: then it is asked again.
    ///
    /// # Errors
    /// What `read` says, or said.
    pub fn symbols(
        &self,
        of: &VmCoreInfo,
        read: impl FnOnce() -> Result<Result<Symbols, String>, String>,
    ) -> Result<Arc<Symbols>, String> {
        self.kept(of, |facts| &mut facts.symbols, read)
    }

    /// Its types, likewise.
    ///
    /// # Errors
    /// What `read` says, or said.
    pub fn types(
        &self,
        of: &VmCoreInfo,
        read: impl FnOnce() -> Result<Result<Types, String>, String>,
    ) -> Result<Arc<Types>, String> {
        self.kept(of, |facts| &mut facts.types, read)
    }

    fn kept<T>(
        &self,
        of: &VmCoreInfo,
        part: impl Fn(&mut Facts) -> &mut Option<Lasting<T>>,
        read: impl FnOnce() -> Result<Result<T, String>, String>,
    ) -> Lasting<T> {
        if let Some(known) = part(Kept::facts(&mut self.lock(), of)).clone() {
            return known;
        }
        // Others may look something up meanwhile.
        let found = read()?.map(Arc::new);
        *part(Kept::facts(&mut self.lock(), of)) = Some(found.clone());
        found
    }

    fn lock(&self) -> MutexGuard<'_, Option<Facts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of a kernel; of another one they are forgotten.
    fn facts<'a>(kept: &'a mut Option<Facts>, of: &VmCoreInfo) -> &'a mut Facts {
        if kept.as_ref().is_some_and(|facts| facts.of != *of) {
            *kept = None;
        }
        kept.get_or_insert_with(|| Facts { of: of.clone(), symbols: None, types: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::symbols::{Builder, Kind, Symbol};

    fn kernel(release: &str) -> VmCoreInfo {
        VmCoreInfo::parse(format!("OSRELEASE={release}\nPAGESIZE=4096\n").as_bytes()).unwrap()
    }

    #[test]
    fn what_is_known_of_a_kernel_is_read_once_and_of_another_one_anew() {
        let (kept, one, other) = (Kept::default(), kernel("6.1.0"), kernel("6.12.0"));
        let read = |name: &'static str| {
            move || {
                let mut builder = Builder::default();
                builder.add(Symbol { name, address: 1, kind: Kind::Text, is_global: true });
                Ok(Ok(builder.finish()))
            }
        };
        let has = |symbols: &Symbols, name: &str| symbols.address(name) == Some(1);
        // What could not be read is asked for again, and what is not there is not.
        assert_eq!(kept.symbols(&one, || Err("not mapped".into())).unwrap_err(), "not mapped");
        assert_eq!(kept.symbols(&other, || Ok(Err("none".into()))).unwrap_err(), "none");
        assert_eq!(kept.symbols(&other, read("late")).unwrap_err(), "none");
        assert!(has(&kept.symbols(&one, read("first")).unwrap(), "first"));
        assert!(has(&kept.symbols(&one, || Err("again".into())).unwrap(), "first"));
        assert_eq!(kept.types(&one, || Ok(Ok(Types::new(8)))).unwrap().count(), 1);
        assert!(has(&kept.symbols(&one, || Err("again".into())).unwrap(), "first"), "types are beside it");
        assert!(has(&kept.symbols(&other, read("second")).unwrap(), "second"));
        assert!(has(&kept.symbols(&one, read("third")).unwrap(), "third"));
    }
}
