//! How things to do come to a vCPU's thread.

use debug::live::inbox::Post;
use kvm::{Vcpu, kick};

/// Something that a vCPU's thread does between two entries to the guest.
pub type Task = debug::live::vcpus::Task<Vcpu>;

/// Somewhere to leave things for a vCPU's thread to do.
#[derive(Clone, Debug)]
pub struct Mailbox {
    post: Post<Vcpu>,
    thread: kick::Thread,
}

impl Mailbox {
    /// Of the thread that tasks are left for by `post`.
    ///
    /// # Safety
    /// As long as the mailbox or a clone of it is used, nobody must have joined the thread or let go of its handle.
    pub unsafe fn new(post: Post<Vcpu>, thread: kick::Thread) -> Mailbox {
        Mailbox { post, thread }
    }

    /// Has the vCPU's thread call `call` with it before it enters the guest again.
    pub fn post(&self, call: impl FnOnce(&mut Vcpu) + Send + 'static) {
        if self.post.leave(Box::new(move |_, vcpu| call(vcpu))) {
            // SAFETY: the thread has not been joined, as whoever made this has said.
            unsafe { self.thread.kick() };
        }
    }
}
