//! A request, taken apart: a header, a structure, names, and what is left.

use crate::protocol::InHeader;
use rustix::io::Errno;
use std::ffi::CStr;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// What is left of a request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub header: InHeader,
    rest: &'a [u8],
}

/// What something in a folder is called: one component of a path, which is none of those that lead elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// A name in a folder.
    ///
    /// # Errors
    /// `EINVAL`: it is empty, `.` or `..`, or has a slash.
    pub fn new(name: &'a CStr) -> Result<Name<'a>, Errno> {
        let bytes = name.to_bytes();
        match bytes {
            b"" | b"." | b".." => Err(Errno::INVAL),
            _ if bytes.contains(&b'/') => Err(Errno::INVAL),
            _ => Ok(Name(name)),
        }
    }

    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

impl<'a> Request<'a> {
    /// The header of a request, and what the header says belongs to it.
    ///
    /// # Errors
    /// The header as far as it is known, and why it is none: it is cut off, or its length is not so.
    pub fn new(bytes: &'a [u8]) -> Result<Request<'a>, Option<InHeader>> {
        let (header, rest) = InHeader::read_from_prefix(bytes).map_err(|_| None)?;
        let size = usize::try_from(header.len).unwrap_or(usize::MAX).checked_sub(size_of::<InHeader>());
        let rest = size.and_then(|size| rest.get(..size)).ok_or(Some(header))?;
        Ok(Request { header, rest })
    }

    /// Takes a structure.
    ///
    /// # Errors
    /// `EINVAL`: it is cut off.
    pub fn take<T: FromBytes + Immutable + KnownLayout>(&mut self) -> Result<T, Errno> {
        let (taken, rest) = T::read_from_prefix(self.rest).map_err(|_| Errno::INVAL)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes a string, with the zero at its end.
    ///
    /// # Errors
    /// `EINVAL`: it has no end.
    pub fn string(&mut self) -> Result<&'a CStr, Errno> {
        let string = CStr::from_bytes_until_nul(self.rest).map_err(|_| Errno::INVAL)?;
        self.rest = &self.rest[string.to_bytes_with_nul().len()..];
        Ok(string)
    }

    /// Takes a name.
    ///
    /// # Errors
    /// `EINVAL`: it has no end, or [`Name::new`].
    pub fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.string()?)
    }

    /// Takes so many bytes.
    ///
    /// # Errors
    /// `EINVAL`: there are not so many.
    pub fn bytes(&mut self, count: u32) -> Result<&'a [u8], Errno> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn names_lead_nowhere_else() {
        for (name, is_good) in [
            (c"a", true),
            (c"...", true),
            (c".a", true),
            (c"", false),
            (c".", false),
            (c"..", false),
            (c"a/b", false),
            (c"/", false),
        ] {
            assert_eq!(Name::new(name).is_ok(), is_good, "{name:?}");
        }
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let header = InHeader { len: 45, opcode: 1, unique: 7, ..InHeader::default() };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(b"ab\0cd");
        let mut request = Request::new(&bytes).unwrap();
        assert_eq!(request.name().unwrap().as_c_str(), c"ab");
        assert_eq!(request.string(), Err(Errno::INVAL));
        assert_eq!(request.bytes(3), Err(Errno::INVAL));
        assert_eq!(request.bytes(2), Ok(&b"cd"[..]));
        assert!(request.take::<u64>().is_err());
        for length in [0, 39] {
            assert!(Request::new(&bytes[..length]).is_err_and(|header| header.is_none()));
        }
        for length in [40, 44] {
            assert!(
                Request::new(&bytes[..length]).is_err_and(|header| header.is_some_and(|it| it.unique == 7))
            );
        }
        bytes[0] = 39;
        assert!(Request::new(&bytes).is_err());
    }
}
