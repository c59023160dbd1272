//! A page on a guest whose kernel hangs or has crashed: what `monitor why` says, of a guest that nobody debugs.

use super::dumper::{Dumper, Still};
use arch::GuestPhys;
use arch::address::PhysRange;
use debug::cancel::Cancel;
use debug::command::Operator;
use debug::command::why::Why;
use debug::dump::core::Core;
use debug::dump::{Contents, Image};
use debug::engine::Engine;
use debug::live::link::Link;
use debug::machine::{Machine, Memory};
use debug::symbols::Symbols;
use debug::view::View;
use kvm::HOST_ISA;
use kvm::ram::LiveMemory;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Dumper {
    /// A page on the guest's Linux kernel that hangs or has crashed, as `monitor why` has it; with source lines by
    /// `symbols`. The guest stands still meanwhile, for a time at most.
    ///
    /// # Errors
    /// In words, why there is none.
    pub fn why(&self, symbols: Option<&Symbols>, limit: Duration) -> Result<Why, String> {
        let (until, is_closed) = (Instant::now() + limit, self.end());
        let cancel = Cancel::new(move || is_closed.load(Ordering::Acquire) || until <= Instant::now());
        let page = |still: Still| {
            let Still { cpus, memory, kernel, link } = still;
            let kernel = kernel.ok_or("no Linux kernel has described itself in the guest's memory")?;
            let image = Box::new(StillMemory { memory, link });
            let contents = Contents {
                format: "a guest that stands still".into(),
                isa: HOST_ISA,
                image,
                cpus,
                info: None,
                remarks: Vec::new(),
            };
            let mut core = Core::new(contents, false).map_err(|error| error.to_string())?.with_kernel(kernel);
            core.set_cancel(&cancel);
            let engine = Engine::new(core.isa(), core.abilities().clone(), core.vcpus());
            let looker = Looker { core, engine, cancel: &cancel, symbols };
            Why::of(&looker).map_err(|refusal| refusal.to_string())
        };
        let found = self.standing_still(&mut || cancel.check(), page).ok_or("the guest is gone")?;
        found.unwrap_or_else(|cancelled| Err(cancelled.to_string()))
    }
}

/// Its memory, without what a debugger has planted.
struct StillMemory {
    memory: LiveMemory,
    link: Option<Arc<Link>>,
}

impl std::fmt::Debug for StillMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StillMemory").finish_non_exhaustive()
    }
}

impl Image for StillMemory {
    fn ranges(&self) -> Vec<PhysRange> {
        self.memory.ranges()
    }

    fn populated(&self) -> Vec<PhysRange> {
        self.memory.populated()
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let count = self.memory.read(GuestPhys(address), bytes);
        if let Some(link) = &self.link {
            link.engine.requests().table.unmask(GuestPhys(address), &mut bytes[..count]);
        }
        count
    }
}

/// Who looks at it.
struct Looker<'a> {
    core: Core,
    engine: Engine,
    cancel: &'a Cancel,
    symbols: Option<&'a Symbols>,
}

impl Operator for Looker<'_> {
    fn view(&self) -> View<'_> {
        View { machine: &self.core, engine: &self.engine, vcpu: 0, is_physical: false, cancel: self.cancel }
    }

    fn machine(&mut self) -> &mut dyn Machine {
        &mut self.core
    }

    fn prefix(&self) -> &'static str {
        "monitor"
    }

    fn about_symbols(&self) -> &'static str {
        "--symbols vmlinux has the address of a symbol"
    }

    fn most_bytes(&self) -> u64 {
        0
    }

    fn symbols(&self) -> Option<&Symbols> {
        self.symbols
    }
}
