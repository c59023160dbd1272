//! Which Linux kernels have described themselves in memory, and whose description is true.
//!
//! A page that begins like a kernel's description may be anybody's: a file in the guest's page cache, a
//! nested guest's, a kernel's that ran before and crashed into this one. So each is held against what a
//! process in the guest cannot write:
//! * the release that it tells is what the kernel's `init_uts_ns` has, where it says that this is;
//! * a vCPU's page tables, or those that it names itself, have that at the same place, in the kernel's
//!   image, in which on aarch64 the vCPU's vectors are, too;
//! * the image points to the page: Linux has its address in `vmcoreinfo_data`.
//!
//! A kernel that lies is believed, as it is the guest; two that fit alike are not chosen between.
//!
//! Source: Linux, `kernel/vmcore_info.c` (`crash_save_vmcoreinfo_init`), `include/linux/utsname.h` and
//! `include/uapi/linux/utsname.h`; `arch/x86/include/asm/page_64_types.h`,
//! `Documentation/admin-guide/kdump/vmcoreinfo.rst`.

use crate::info::{BEGIN, Described, VmCoreInfo};
use crate::translate::{self, LARGEST_IMAGE, Piece, X86_IMAGE, kernel_regime};
use arch::paging::Regime;
use arch::ram::Memory;
use arch::register::RegisterFile;
use arch::{GuestPhys, GuestVirt, Isa};

/// Bytes of a page, at the beginning of which a description is looked for.
const PAGE: usize = 4096;
/// Bytes that are looked at between two questions whether to go on.
const AT_ONCE: usize = 256 * PAGE;
/// Bytes of memory that are searched at most: a file may claim more than anybody has.
const MOST_SEARCHED: u64 = 1 << 40;
/// Descriptions that are told apart at most, kernels' images that are searched, and pointers in one that are
/// followed.
const MOST_KEPT: usize = 16;
const MOST_IMAGES: usize = 16;
const MOST_POINTERS: usize = 1 << 20;
/// vCPUs that translate by tables of their own, that are looked at, at most: each may have an image in very small pieces.
const MOST_ANCHORS: usize = 256;
/// How much room x86-64 has for a kernel's image, bytes.
const X86_IMAGE_ROOM: u64 = 1 << 30;
/// `struct new_utsname`: bytes of each of its fields, and in which the release is.
const UTS_FIELD: usize = 65;
const UTS_RELEASE: u64 = 2 * 65;
/// Where `struct uts_namespace` had that before its kernel told (5.11).
const UTS_NAME: u64 = 4;

/// A vCPU, by what it tells of the kernel that it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// How it translates.
    pub regime: Regime,
    /// aarch64: its `VBAR_EL1`.
    pub vbar: u64,
}

impl Anchor {
    /// That of a vCPU that translates; `registers` has its system registers.
    pub fn new(registers: &RegisterFile) -> Option<Anchor> {
        let regime = translate::regime(registers).ok().filter(Regime::is_on)?;
        Some(Anchor { regime, vbar: registers.get("VBAR_EL1").unwrap_or(0) })
    }
}

/// How much is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The kernel that runs; where that is found without a search of all memory, there is none.
    Running,
    /// Everything that looks like a kernel's description.
    Everything,
}

/// How good a description is, the best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It fits by tables of its own, and nothing points to it.
    Alone,
    /// It fits the kernel that runs, which does not point to it.
    Unknown,
    /// It fits, by tables of its own, and that kernel points to it; which no vCPU runs.
    Other,
    /// A vCPU runs that kernel.
    Runs,
}

/// A description that fits.
struct Candidate {
    page: GuestPhys,
    info: VmCoreInfo,
    standing: Standing,
}

/// A target, looked through.
struct Search<'a, E> {
    isa: Isa,
    memory: &'a dyn Memory,
    anchors: &'a [Anchor],
    go_on: &'a mut dyn FnMut() -> Result<(), E>,
    candidates: Vec<Candidate>,
    /// Pages that only begin like a description, or do not fit.
    unfit: u64,
    /// There may be more.
    is_cut_off: bool,
    images: Vec<SearchedImage>,
}

/// A kernel's image that no vCPU runs, and the pages that it points to.
struct SearchedImage {
    regime: Regime,
    text: u64,
    pages: Vec<GuestPhys>,
}

/// Finds the kernel that runs. `go_on` is asked every megabyte, as much RAM takes long.
///
/// # Errors
/// Those of `go_on`.
pub fn find<E>(
    isa: Isa,
    memory: &dyn Memory,
    anchors: &[Anchor],
    scope: Scope,
    go_on: &mut dyn FnMut() -> Result<(), E>,
) -> Result<Described, E> {
    let (candidates, images) = (Vec::new(), Vec::new());
    let mut known: Vec<Anchor> = Vec::new();
    for anchor in anchors {
        if known.len() < MOST_ANCHORS && !known.contains(anchor) {
            known.push(*anchor);
        }
    }
    let anchors = &known;
    let mut search = Search { isa, memory, anchors, go_on, candidates, unfit: 0, is_cut_off: false, images };
    search.running()?;
    if scope == Scope::Everything || search.candidates.len() != 1 {
        search.everything()?;
    }
    Ok(search.verdict())
}

/// A kernel that was found before, and what it says of its build beside its description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    info: VmCoreInfo,
    /// As `uname -v` has it.
    version: [u8; UTS_FIELD],
}

impl Known {
    /// One that [`find`] has found; `None` if it does not say enough of itself to be known again.
    pub fn new(isa: Isa, memory: &dyn Memory, info: &VmCoreInfo) -> Option<Known> {
        let version = ImagePlace::new(isa, info)?.version(memory)?;
        Some(Known { info: info.clone(), version })
    }

    /// Its description.
    pub fn info(&self) -> &VmCoreInfo {
        &self.info
    }

    /// Whether a vCPU runs it still, as far as that can be told without a search: its release and version are where they
    /// were, and translated as it says. Where this is not so it may run all the same, if all vCPUs are in user space.
    pub fn runs(&self, isa: Isa, memory: &dyn Memory, anchors: &[Anchor]) -> bool {
        self.is_there(isa, memory)
            && ImagePlace::new(isa, &self.info)
                .is_some_and(|place| anchors.iter().any(|anchor| place.is_of(isa, memory, anchor)))
    }

    /// Whether its release and version are where they were, for whoever has no registers of a vCPU: it may be over all the
    /// same, and another kernel run.
    pub fn is_there(&self, isa: Isa, memory: &dyn Memory) -> bool {
        ImagePlace::new(isa, &self.info).is_some_and(|place| {
            place.has_release(memory, &self.info) && place.version(memory) == Some(self.version)
        })
    }
}

/// Whether a description fits memory, as far as that can be told without any tables: the release is where it
/// says.
pub fn fits(isa: Isa, memory: &dyn Memory, info: &VmCoreInfo) -> bool {
    ImagePlace::new(isa, info).is_some_and(|place| place.has_release(memory, info))
}

/// Where a description says that its kernel is.
#[derive(Clone, Copy)]
struct ImagePlace {
    /// The image's text, and a variable in it, guest-virtual.
    text: u64,
    variable: u64,
    /// What has the release.
    release: u64,
    /// What guest-virtual addresses of the image are more than guest-physical ones, modulo 2^64.
    delta: u64,
}

impl ImagePlace {
    /// `None` where it does not say, or not of a kernel's image.
    fn new(isa: Isa, info: &VmCoreInfo) -> Option<ImagePlace> {
        let (text, variable) = (info.address("_stext")?, info.address("init_uts_ns")?);
        let delta = match isa {
            Isa::X86_64 => {
                let is_there = |at: u64| at.checked_sub(X86_IMAGE).is_some_and(|at| at < X86_IMAGE_ROOM);
                (is_there(text) && is_there(variable)).then_some(())?;
                X86_IMAGE.wrapping_sub(info.number("phys_base").unwrap_or(0))
            }
            Isa::Aarch64 => info.number("kimage_voffset")?,
        };
        variable.checked_sub(text).filter(|behind| *behind < LARGEST_IMAGE && text >> 63 != 0)?;
        let name = info.offset("uts_namespace.name").unwrap_or(UTS_NAME);
        let release = variable.checked_add(name)?.checked_add(UTS_RELEASE)?;
        Some(ImagePlace { text, variable, release, delta })
    }

    fn physical(&self, address: u64) -> GuestPhys {
        GuestPhys(address.wrapping_sub(self.delta))
    }

    /// Whether the kernel tells the same release as the description.
    fn has_release(&self, memory: &dyn Memory, info: &VmCoreInfo) -> bool {
        let mut bytes = [0; UTS_FIELD];
        let read = memory.read(self.physical(self.release), &mut bytes);
        let mut parts = bytes[..read].split(|byte| *byte == 0);
        read == UTS_FIELD && parts.next() == Some(info.release().as_bytes())
    }

    /// The kernel's version, which is behind its release.
    fn version(&self, memory: &dyn Memory) -> Option<[u8; UTS_FIELD]> {
        let mut version = [0; UTS_FIELD];
        let at = self.physical(self.release.checked_add(UTS_FIELD as u64)?);
        (memory.read(at, &mut version) == UTS_FIELD).then_some(version)
    }

    /// Whether tables have it where the description has.
    fn is_mapped(&self, memory: &dyn Memory, regime: &Regime, address: u64) -> bool {
        let mapping = regime.translate(memory, GuestVirt(address));
        mapping.is_ok_and(|mapping| mapping.address == self.physical(address))
    }

    /// Whether a vCPU runs it.
    fn is_of(&self, isa: Isa, memory: &dyn Memory, anchor: &Anchor) -> bool {
        /// What is in front of the text may have the vectors, less than an image's alignment.
        const HEAD: u64 = 2 << 20;
        let has_vectors = match isa {
            Isa::X86_64 => true,
            Isa::Aarch64 => {
                let behind = anchor.vbar.wrapping_sub(self.text.saturating_sub(HEAD));
                behind < LARGEST_IMAGE && self.is_mapped(memory, &anchor.regime, anchor.vbar)
            }
        };
        has_vectors && self.is_mapped(memory, &anchor.regime, self.variable)
    }
}

impl<E> Search<'_, E> {
    /// Looks at what the kernels point to that vCPUs run.
    fn running(&mut self) -> Result<(), E> {
        let mut seen: Vec<Vec<Piece>> = Vec::new();
        for anchor in self.anchors {
            (self.go_on)()?;
            let pieces = translate::image(self.isa, &anchor.regime, self.memory, anchor.vbar);
            if pieces.is_empty() || seen.contains(&pieces) || seen.len() >= MOST_IMAGES {
                continue;
            }
            for page in self.pointed(&anchor.regime, &pieces)? {
                let Some(info) = self.parse(page) else { continue };
                let place = ImagePlace::new(self.isa, &info).filter(|it| it.has_release(self.memory, &info));
                if place.is_some_and(|place| place.is_of(self.isa, self.memory, anchor)) {
                    self.keep(Candidate { page, info, standing: Standing::Runs });
                }
            }
            seen.push(pieces);
        }
        Ok(())
    }

    /// Looks at each page of memory.
    fn everything(&mut self) -> Result<(), E> {
        let mut buffer = vec![0; AT_ONCE];
        let mut left = MOST_SEARCHED;
        for range in self.memory.populated() {
            let mut at = range.start.0.next_multiple_of(PAGE as u64);
            while at < range.end().0 {
                (self.go_on)()?;
                if left == 0 {
                    self.is_cut_off = true;
                    return Ok(());
                }
                let wanted = usize::try_from(range.end().0 - at).map_or(AT_ONCE, |left| left.min(AT_ONCE));
                let read = self.memory.read(GuestPhys(at), &mut buffer[..wanted]);
                for (number, page) in (0u64..).zip(buffer[..read].chunks(PAGE)) {
                    if page.starts_with(BEGIN) {
                        self.page(GuestPhys(at + number * PAGE as u64), page)?;
                    }
                }
                // What cannot be read is gone past, a page at a time.
                let done = (read as u64).next_multiple_of(PAGE as u64).max(PAGE as u64);
                at = at.saturating_add(done);
                left = left.saturating_sub(done);
            }
        }
        Ok(())
    }

    /// Judges a page that begins like a description.
    fn page(&mut self, page: GuestPhys, bytes: &[u8]) -> Result<(), E> {
        let is_same = |known: &Candidate| {
            let rest = bytes.strip_prefix(known.info.text().as_bytes());
            rest.is_some_and(|rest| matches!(rest, [] | [0, ..]))
        };
        if self.candidates.iter().any(|known| known.standing == Standing::Runs && is_same(known)) {
            // A copy tells nothing else.
            return Ok(());
        }
        let judged = match VmCoreInfo::parse(bytes) {
            Some(info) => self.judge(page, &info)?.map(|standing| Candidate { page, info, standing }),
            None => None,
        };
        match judged {
            Some(candidate) => self.keep(candidate),
            None => self.unfit += 1,
        }
        Ok(())
    }

    /// How good a description is that no image points to which a vCPU runs; `None` if it does not fit.
    fn judge(&mut self, page: GuestPhys, info: &VmCoreInfo) -> Result<Option<Standing>, E> {
        let Some(place) = ImagePlace::new(self.isa, info).filter(|it| it.has_release(self.memory, info))
        else {
            return Ok(None);
        };
        if self.anchors.iter().any(|anchor| place.is_of(self.isa, self.memory, anchor)) {
            return Ok(Some(Standing::Unknown));
        }
        let Some(regime) = kernel_regime(self.isa, info) else { return Ok(None) };
        if !place.is_mapped(self.memory, &regime, place.variable) {
            return Ok(None);
        }
        let known = self.images.iter().find(|image| (image.regime, image.text) == (regime, place.text));
        let is_pointed = match known {
            Some(image) => image.pages.contains(&page),
            None if self.images.len() >= MOST_IMAGES => {
                self.is_cut_off = true;
                false
            }
            None => {
                let pieces = translate::image_from(&regime, self.memory, place.text);
                let pages = self.pointed(&regime, &pieces)?;
                let is_pointed = pages.contains(&page);
                self.images.push(SearchedImage { regime, text: place.text, pages });
                is_pointed
            }
        };
        Ok(Some(if is_pointed { Standing::Other } else { Standing::Alone }))
    }

    /// Keeps a description, unless it is known from a better place, or there are better ones enough.
    fn keep(&mut self, new: Candidate) {
        if let Some(known) = self.candidates.iter_mut().find(|known| known.info.text() == new.info.text()) {
            if known.standing < new.standing {
                *known = new;
            }
            return;
        }
        if self.candidates.len() < MOST_KEPT {
            return self.candidates.push(new);
        }
        self.is_cut_off = true;
        let worst = self.candidates.iter_mut().min_by_key(|known| known.standing);
        if let Some(worst) = worst.filter(|worst| worst.standing < new.standing) {
            *worst = new;
        }
    }

    fn parse(&self, page: GuestPhys) -> Option<VmCoreInfo> {
        let mut bytes = [0; PAGE];
        let read = self.memory.read(page, &mut bytes);
        VmCoreInfo::parse(&bytes[..read])
    }

    /// Pages that begin like a description and that an image has the address of.
    fn pointed(&mut self, regime: &Regime, image: &[Piece]) -> Result<Vec<GuestPhys>, E> {
        /// Where aarch64 may have a tag.
        const TAG: u64 = 0xff << 56;
        let tag = if self.isa == Isa::Aarch64 { TAG } else { 0 };
        let mut pages = Vec::new();
        let mut followed = 0;
        let mut buffer = vec![0; AT_ONCE];
        for piece in image {
            let mut done = 0;
            while done < piece.range.size {
                (self.go_on)()?;
                let left = usize::try_from(piece.range.size - done).unwrap_or(AT_ONCE);
                let wanted = left.min(AT_ONCE);
                let read = self.memory.read(GuestPhys(piece.range.start.0 + done), &mut buffer[..wanted]);
                for word in buffer[..read].chunks_exact(8) {
                    let word = word.try_into().map_or(0, u64::from_le_bytes);
                    if word >> 63 == 0 || word & (PAGE as u64 - 1) != 0 {
                        continue;
                    }
                    followed += 1;
                    if followed > MOST_POINTERS || pages.len() >= MOST_KEPT {
                        return Ok(pages);
                    }
                    let page = self.begins(regime, word | tag);
                    pages.extend(page.filter(|page| !pages.contains(page)));
                }
                done += (read as u64).next_multiple_of(PAGE as u64).max(PAGE as u64);
            }
        }
        Ok(pages)
    }

    /// The page at an address, if it begins like a description.
    fn begins(&self, regime: &Regime, at: u64) -> Option<GuestPhys> {
        let page = regime.translate(self.memory, GuestVirt(at)).ok()?.address;
        let mut begin = [0; BEGIN.len()];
        (self.memory.read(page, &mut begin) == BEGIN.len() && begin == BEGIN).then_some(page)
    }

    /// What is to be believed of it, and what is to be said.
    fn verdict(mut self) -> Described {
        self.candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.standing));
        let best = self.candidates.first().map_or(Standing::Alone, |best| best.standing);
        let alike = self.candidates.iter().take_while(|candidate| candidate.standing == best).count();
        let is_clear = alike == 1 && best >= Standing::Other;
        let words = |candidate: &Candidate| {
            format!("{} (described at {:#x})", candidate.info.release(), candidate.page)
        };
        let mut remarks = Vec::new();
        if alike > 1 && best >= Standing::Other {
            let all: Vec<String> = self.candidates[..alike].iter().map(words).collect();
            remarks.push(format!("several kernels fit alike and cannot be told apart: {}", all.join(", ")));
        }
        let chosen = is_clear.then(|| self.candidates.remove(0));
        for other in &self.candidates {
            match other.standing {
                Standing::Runs | Standing::Other if !is_clear => {}
                Standing::Runs | Standing::Other => {
                    remarks
                        .push(format!("another kernel is in memory, which no vCPU runs: {}", words(other)));
                }
                Standing::Unknown | Standing::Alone => remarks.push(format!(
                    "not believed, because nothing in that kernel points to it: a description of {}",
                    words(other)
                )),
            }
        }
        if self.unfit > 0 {
            let (pages, them) = if self.unfit == 1 { ("page", "it is") } else { ("pages", "they are") };
            remarks.push(format!(
                "{} {pages} like a kernel's description fit no kernel here: {them} a file's or a nested guest's",
                self.unfit
            ));
        }
        if self.is_cut_off {
            remarks.push("not everything was looked at that looks like a kernel's description".into());
        }
        Described { info: chosen.map(|chosen| chosen.info), remarks }
    }
}

#[cfg(test)]
mod tests;
