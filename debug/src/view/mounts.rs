//! What is mounted in the guest's Linux kernel.

use super::View;
use super::kernel::in_words;
use crate::linux::VmCoreInfo;
use crate::linux::mount::{MountLayout, Mounts};
use crate::linux::reader::Reader;

impl View<'_> {
    /// What is mounted where the task of a number sees it.
    ///
    /// # Errors
    /// In words: there is no such task, or what the kernel lacks for that. Also when it is broken off.
    pub fn kernel_mounts(&self, info: &VmCoreInfo, pid: u32) -> Result<Mounts, String> {
        let tasks = self.kernel_tasks(info)?;
        let task = tasks.all.iter().find(|task| task.pid == pid);
        let task = task.ok_or_else(|| format!("there is no task {pid}"))?.address;
        let layout = MountLayout::new(&*self.kernel_types(info)?)?;
        self.by_kernel(info, |read| {
            in_words(layout.mounts(task, &Reader::new(read), &mut || self.cancel.check()))
        })
    }
}
