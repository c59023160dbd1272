//! An image and its backing files: each opened once, looked at, and locked, before the library sees any.

use super::header::{Backing, Header, cluster_size};
use super::tables;
use crate::error::{DiskError, Qcow2Error};
use crate::file::Medium;
use crate::lock::lock;
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The most images over each other.
pub const MOST_LAYERS: usize = 16;

/// One of them.
#[derive(Debug)]
pub struct Link {
    pub medium: Medium,
    /// None: a raw one, below which nothing is.
    pub header: Option<Header>,
}

/// The folder of the image, below which backing files are.
struct Folder {
    path: PathBuf,
    descriptor: OwnedFd,
}

impl Folder {
    fn of(image: &Path) -> Result<Folder, DiskError> {
        let image = image.canonicalize().map_err(DiskError::Open)?;
        let path = image.parent().unwrap_or(Path::new("/")).to_path_buf();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(&path, flags, Mode::empty());
        Ok(Folder { path, descriptor: descriptor.map_err(|error| DiskError::Open(error.into()))? })
    }

    /// A backing file's path below it, by its name in an image that is in a folder below it. Whether that leads out is
    /// found when it is opened.
    fn below(&self, inner: &Path, name: &str) -> Result<PathBuf, DiskError> {
        if !name.starts_with('/') {
            return Ok(inner.join(name));
        }
        let whole = Path::new(name).canonicalize().map_err(DiskError::Open)?;
        let below = whole.strip_prefix(&self.path).map_err(|_| Qcow2Error::Outside)?;
        Ok(below.to_path_buf())
    }
}

/// Looks at an image's header and tables.
fn look(medium: &Medium) -> Result<Header, DiskError> {
    let said = |error: std::io::Error| DiskError::Open(error);
    let beginning = medium.beginning(512).map_err(said)?;
    let first = usize::try_from(cluster_size(&beginning)?).unwrap_or_default();
    let header = Header::parse(&medium.beginning(first).map_err(said)?, medium.length)?;
    tables::check(&medium.file, &header, medium.length)?;
    Ok(header)
}

/// The image at `path`, which is open, and all that are below it, in this order.
///
/// # Errors
/// [`DiskError::Qcow2`] of it; [`DiskError::Backing`] of one below it.
pub fn gather(path: &Path, medium: Medium, is_written: bool) -> Result<Vec<Link>, DiskError> {
    let header = look(&medium)?;
    if is_written {
        tables::check_refcounts(&medium.file, &header, medium.length)?;
    }
    let mut next = header.backing.clone();
    let mut links = vec![Link { medium, header: Some(header) }];
    let (mut folder, mut inner) = (None, PathBuf::new());
    while let Some(backing) = next.take() {
        let place = match &mut folder {
            Some(place) => place,
            none => none.insert(Folder::of(path)?),
        };
        let link = one_below(place, &mut inner, &backing, &links);
        let link =
            link.map_err(|source| DiskError::Backing { name: backing.name, source: Box::new(source) })?;
        next = link.header.as_ref().and_then(|header| header.backing.clone());
        links.push(link);
    }
    Ok(links)
}

/// Opens a backing file; `inner` is the folder of the image that names it, and then its own.
fn one_below(
    folder: &Folder,
    inner: &mut PathBuf,
    backing: &Backing,
    links: &[Link],
) -> Result<Link, DiskError> {
    if links.len() >= MOST_LAYERS {
        return Err(Qcow2Error::Deep(MOST_LAYERS).into());
    }
    let path = folder.below(inner, &backing.name)?;
    let medium = Medium::open_beneath(&folder.descriptor, &path)?;
    let identity = medium.identity().map_err(DiskError::Open)?;
    if links.iter().any(|link| link.medium.identity().is_ok_and(|other| other == identity)) {
        return Err(Qcow2Error::Deep(MOST_LAYERS).into());
    }
    lock(&medium.file, false)?;
    let header = if backing.is_qcow2 { Some(look(&medium)?) } else { None };
    *inner = path.parent().unwrap_or(Path::new("")).to_path_buf();
    Ok(Link { medium, header })
}
