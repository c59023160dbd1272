//! Xen's error numbers, which are those of Linux (Xen, `xen/include/public/errno.h`), negative as
//! calls result in them.

/// No such entry.
pub const ENOENT: i64 = -2;
/// No such domain.
pub const ESRCH: i64 = -3;
/// Not for this guest.
pub const EPERM: i64 = -1;
/// More than is done at once.
pub const E2BIG: i64 = -7;
/// Memory that cannot be read or written.
pub const EFAULT: i64 = -14;
/// There is one already.
pub const EEXIST: i64 = -17;
/// An argument is wrong.
pub const EINVAL: i64 = -22;
/// No more of them.
pub const ENOSPC: i64 = -28;
/// There is no such call.
pub const ENOSYS: i64 = -38;
/// The time is over.
pub const ETIME: i64 = -62;
/// It is not done this way here.
pub const EOPNOTSUPP: i64 = -95;

/// An error's name; `None` for results that are no errors.
pub fn name(result: i64) -> Option<&'static str> {
    Some(match result {
        EPERM => "EPERM",
        ENOENT => "ENOENT",
        ESRCH => "ESRCH",
        E2BIG => "E2BIG",
        EFAULT => "EFAULT",
        EEXIST => "EEXIST",
        EINVAL => "EINVAL",
        ENOSPC => "ENOSPC",
        ENOSYS => "ENOSYS",
        ETIME => "ETIME",
        EOPNOTSUPP => "EOPNOTSUPP",
        _ => return None,
    })
}
