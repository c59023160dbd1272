//! How things to do come to a vCPU's thread.

use debug::live::attention::Attention;
use kvm::{Vcpu, kick};
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Something that a vCPU's thread does between two entries to the guest.
pub type Task = debug::live::vcpus::Task<Vcpu>;

/// What is sent to a vCPU's thread.
pub enum Message {
    /// Do this.
    Task(Task),
    /// End the thread; the sender is dropped when it has ended.
    Stop(Sender<()>),
}

impl fmt::Debug for Message {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Message::Task(_) => "Task",
            Message::Stop(_) => "Stop",
        })
    }
}

/// Somewhere to leave things for a vCPU's thread to do.
#[derive(Clone, Debug)]
pub struct Mailbox {
    inbox: Sender<Message>,
    attention: Arc<Attention>,
    thread: kick::Thread,
}

impl Mailbox {
    /// Of the thread that looks into `inbox`, and says by `attention` when it needs no kick.
    ///
    /// # Safety
    /// As long as the mailbox or a clone of it is used, nobody must have joined the thread or let go of its handle.
    pub unsafe fn new(inbox: Sender<Message>, attention: Arc<Attention>, thread: kick::Thread) -> Mailbox {
        Mailbox { inbox, attention, thread }
    }

    /// Has the vCPU's thread call `call` with it before it enters the guest again.
    pub fn post(&self, call: impl FnOnce(&mut Vcpu) + Send + 'static) {
        let task = Message::Task(Box::new(move |_, vcpu| call(vcpu)));
        let is_sent = self.inbox.send(task).is_ok();
        if is_sent && !self.attention.is_there() {
            // SAFETY: the thread has not been joined, as whoever made this has said.
            unsafe { self.thread.kick() };
        }
    }
}
