//! Whose files are, as the guest is told and as the host keeps it.
//!
//! A monitor of root's shares files with the owners that they have. Another user's cannot give files away, so the
//! guest is shown all that is his as its own root's, and what it makes is his.

use crate::protocol::Attr;
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

/// The owner and the group of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub user: u32,
    pub group: u32,
}

/// How owners of the guest's and of the host's are related.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// They are the same.
    AsTheyAre,
    /// What is this owner's on the host is root's in the guest.
    Squashed(Owner),
}

impl Owners {
    /// As this process can do.
    pub fn of_this_process() -> Owners {
        let owner = Owner { user: geteuid().as_raw(), group: getegid().as_raw() };
        if owner.user == 0 { Owners::AsTheyAre } else { Owners::Squashed(owner) }
    }

    /// Puts into attributes of the host's what the guest is told.
    pub fn show(self, attr: &mut Attr) {
        if let Owners::Squashed(owner) = self
            && owner.user == attr.uid
        {
            (attr.uid, attr.gid) = (0, 0);
        }
    }

    /// What has to be set on the host for a file to have an owner or a group that the guest names. `shown` are its
    /// attributes as the guest is told them.
    ///
    /// # Errors
    /// `EPERM`: this user cannot. `EINVAL`: the last number, which means none to the host.
    pub fn change(self, shown: &Attr, user: Option<u32>, group: Option<u32>) -> Result<Option<Owner>, Errno> {
        if user == Some(u32::MAX) || group == Some(u32::MAX) {
            return Err(Errno::INVAL);
        }
        let wanted = Owner { user: user.unwrap_or(shown.uid), group: group.unwrap_or(shown.gid) };
        let is_so = wanted == Owner { user: shown.uid, group: shown.gid };
        match self {
            Owners::AsTheyAre => Ok((user.is_some() || group.is_some()).then_some(wanted)),
            Owners::Squashed(_) if is_so => Ok(None),
            Owners::Squashed(_) => Err(Errno::PERM),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_users_files_are_roots_in_the_guest() {
        let owners = Owners::Squashed(Owner { user: 1000, group: 100 });
        for (is, shown) in
            [((1000, 100), (0, 0)), ((1000, 7), (0, 0)), ((0, 0), (0, 0)), ((1001, 100), (1001, 100))]
        {
            let mut attr = Attr { uid: is.0, gid: is.1, ..Attr::default() };
            owners.show(&mut attr);
            assert_eq!((attr.uid, attr.gid), shown);
        }
        let shown = Attr::default();
        for (user, group, change) in [
            (Some(0), None, Ok(None)),
            (None, Some(0), Ok(None)),
            (Some(0), Some(0), Ok(None)),
            (Some(1000), None, Err(Errno::PERM)),
            (None, Some(5), Err(Errno::PERM)),
            (Some(u32::MAX), None, Err(Errno::INVAL)),
        ] {
            assert_eq!(owners.change(&shown, user, group), change);
        }
    }

    #[test]
    fn roots_files_have_the_owners_that_they_have() {
        let mut attr = Attr { uid: 5, gid: 6, ..Attr::default() };
        Owners::AsTheyAre.show(&mut attr);
        assert_eq!((attr.uid, attr.gid), (5, 6));
        assert_eq!(Owners::AsTheyAre.change(&attr, None, None), Ok(None));
        assert_eq!(Owners::AsTheyAre.change(&attr, None, Some(9)), Ok(Some(Owner { user: 5, group: 9 })));
        assert_eq!(Owners::AsTheyAre.change(&attr, Some(5), None), Ok(Some(Owner { user: 5, group: 6 })));
    }
}
