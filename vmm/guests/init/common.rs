//! The first process of a job's guest: it makes the guest ready by the host's list of steps, and runs commands for the
//! host, with what goes in and out of them carried over a port.

#[path = "../../src/job/protocol.rs"]
pub mod protocol;

use crate::session::Session;
use crate::setup::{self, Ready};
use crate::sys::{self, Fd, IN, OUT, Poll};
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use protocol::{Command, Decoder, Frame, Kind, MAIN, NO_SESSION};

/// What waits to be sent: with more, nothing is read that would be sent.
pub const MOST_WAITING: usize = 256 << 10;

impl fmt::Display for sys::Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0 {
            1 => "not permitted",
            2 => "not found",
            5 => "an error of the device",
            8 => "not a program that this kernel runs",
            12 => "no memory",
            13 => "no permission",
            16 => "in use",
            19 => "no such device, or the kernel lacks what it needs",
            20 => "not a folder",
            21 => "a folder",
            22 => "not valid",
            30 => "read-only",
            38 => "the kernel lacks it",
            number => return write!(f, "error {number}"),
        };
        f.write_str(words)
    }
}

/// Says something in the kernel's log, where nobody else may hear.
pub fn say(words: &str) {
    write_to(b"/dev/kmsg", &format!("<4>vmm: {words}\n"));
}

/// Writes to a device, if it is there; whether it was.
fn write_to(device: &[u8], words: &str) -> bool {
    let Ok(fd) = sys::open(device, sys::WRITE_ONLY | sys::NO_TERMINAL | sys::CLOSE_ON_EXEC) else { return false };
    let result = sys::write(fd, words.as_bytes());
    // A console sends what it is told when it can, and the machine goes off at once; what is none refuses.
    sys::drain(fd).ok();
    sys::close(fd);
    result.is_ok()
}

/// Tells the host on the console why there will be no command, as there is no port, and switches the machine off.
fn give_up(words: &str) -> ! {
    // Whatever the file system of devices lacks.
    const CONSOLE: &[u8] = b"/vmm/console";
    const LOG: &[u8] = b"/vmm/kmsg";
    sys::make_device(CONSOLE, 5, 1).ok();
    sys::make_device(LOG, 1, 11).ok();
    let line = format!("{}{}\n", protocol::TROUBLE_LINE, words.replace('\n', " "));
    // By both: a kernel may have no terminal at its console, and another may print nothing of its log. An error is printed
    // also where the kernel is to be quiet.
    // Once the root has been changed they are where the system has them.
    let log = format!("<3>{line}");
    if !write_to(LOG, &log) {
        write_to(b"/dev/kmsg", &log);
    }
    // Whatever the kernel has begun there is its own line.
    let console = format!("\n{line}");
    if !write_to(CONSOLE, &console) {
        write_to(b"/dev/console", &console);
    }
    sys::power_off()
}

/// The process's life.
pub extern "C" fn main() -> ! {
    sys::block_signals(true);
    // The first that is opened would be standard input, output and errors of all that is run.
    let mut result = Ok(());
    for (kind, path) in [(&b"devtmpfs"[..], &b"/dev"[..]), (b"proc", b"/proc"), (b"sysfs", b"/sys")] {
        sys::make_folders(path).ok();
        if let Err(error) = sys::mount(kind, path, kind, 0, b"")
            && error != sys::EBUSY
        {
            let kind = alloc::string::String::from_utf8_lossy(kind);
            result = result.and(Err(format!("the kernel has no {kind}: {error}")));
        }
    }
    for _ in 0..3 {
        sys::open(b"/dev/null", sys::READ_WRITE).ok();
    }
    let mut ready = Ready::default();
    let result = result.and_then(|()| setup::carry_out(&mut ready));
    let Some(port) = ready.port else {
        give_up(&result.err().unwrap_or_else(|| "there is no port".into()));
    };
    let result = match &ready.init {
        Some(init) => result.and_then(|()| hand_over(init)),
        None => result,
    };
    let mut out = Vec::new();
    let mut waits_for = None;
    if let Err(trouble) = &result {
        protocol::put(&mut out, Kind::Trouble, NO_SESSION, trouble.as_bytes());
    } else {
        let hello = [&[protocol::VERSION][..], &sys::release()].concat();
        protocol::put(&mut out, Kind::Hello, NO_SESSION, &hello);
        match &ready.sign {
            Some(file) => {
                let file = alloc::string::String::from_utf8_lossy(file);
                say(&format!("the command waits until the system's first process has made {file}"));
            }
            None => protocol::put(&mut out, Kind::Ready, NO_SESSION, &[]),
        }
        waits_for = ready.sign;
    }
    let log = sys::open(b"/dev/kmsg", sys::READ_ONLY | sys::NO_WAIT | sys::CLOSE_ON_EXEC).ok();
    let children = sys::children().ok();
    Agent { port, log, children, out, waits_for, decoder: Decoder::default(), sessions: Vec::new() }.live()
}

/// Has the system's own first process take this one's place, and goes on in a child, which hears here why that cannot be.
fn hand_over(init: &[u8]) -> Result<(), setup::Trouble> {
    let name = alloc::string::String::from_utf8_lossy(init);
    let cannot = |error: sys::Errno| format!("the first process {name} cannot be executed: {error}");
    let (read, write) = sys::pipe().map_err(cannot)?;
    if sys::fork().map_err(cannot)? != 0 {
        sys::block_signals(false);
        let environment = [b"HOME=/".to_vec(), b"TERM=linux".to_vec()];
        let error = sys::execute(init, &[init.to_vec()], &environment);
        sys::block_signals(true);
        // The child tells the host, which ends the machine; before that this one may not end. A child that has ended hears nothing.
        sys::write(write, &error.0.to_le_bytes()).ok();
        loop {
            sys::poll(&mut [], None);
        }
    }
    sys::close(write);
    // The other end is closed when the program has begun.
    let told = sys::error_of_other(read);
    sys::close(read);
    told.map_or(Ok(()), |error| Err(cannot(error)))
}

/// What carries commands.
struct Agent {
    port: Fd,
    log: Option<Fd>,
    children: Option<Fd>,
    /// What waits to be sent.
    out: Vec<u8>,
    /// The file that is there once the system's own first process is ready, of which the host is still to be told.
    waits_for: Option<Vec<u8>>,
    decoder: Decoder,
    sessions: Vec<Session>,
}

impl Agent {
    fn live(mut self) -> ! {
        loop {
            self.look_for_sign();
            self.wait();
            self.send();
            self.receive();
            self.read_log();
            self.reap();
            self.serve();
            self.send();
        }
    }

    /// Tells the host once the system's own first process is ready.
    fn look_for_sign(&mut self) {
        if self.waits_for.as_deref().is_some_and(sys::is_there) {
            self.waits_for = None;
            protocol::put(&mut self.out, Kind::Ready, NO_SESSION, &[]);
        }
    }

    fn wait(&self) {
        let may_send = self.out.len() < MOST_WAITING;
        let sends = if self.out.is_empty() { 0 } else { OUT };
        let mut polls = Vec::new();
        polls.push(Poll { fd: self.port.0, events: IN | sends, came: 0 });
        for fd in [self.children, self.log.filter(|_| may_send)].into_iter().flatten() {
            polls.push(Poll { fd: fd.0, events: IN, came: 0 });
        }
        for session in &self.sessions {
            session.polls(&mut polls, may_send);
        }
        // Without a descriptor that tells of children, they are looked for now and then (`reap`); so is a file
        // (`look_for_sign`), and whether there is room for the rest of a session whose command has ended (`serve`).
        const LOOK: usize = 100;
        let has_ended = self.sessions.iter().any(|session| session.ended.is_some());
        let looks =
            self.waits_for.is_some() || has_ended || self.children.is_none() && !self.sessions.is_empty();
        sys::poll(&mut polls, looks.then_some(LOOK));
        // A port of which the host's end is closed is always ready.
        if polls[0].came & !(IN | OUT) != 0 {
            sys::power_off();
        }
    }

    fn send(&mut self) {
        while !self.out.is_empty() {
            match sys::write(self.port, &self.out[..self.out.len().min(32 << 10)]) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(sys::EINTR) => {}
                Err(sys::EAGAIN) => return,
                Err(_) => sys::power_off(),
            }
        }
    }

    fn receive(&mut self) {
        let mut bytes = [0; 8192];
        loop {
            match sys::read(self.port, &mut bytes) {
                Ok(0) => sys::power_off(),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(sys::EINTR) => {}
                Err(sys::EAGAIN) => return,
                Err(_) => sys::power_off(),
            }
            loop {
                match self.decoder.take() {
                    Ok(Some(frame)) => self.hear(&frame),
                    Ok(None) => break,
                    Err(_) => {
                        say("the host speaks another language");
                        sys::power_off();
                    }
                }
            }
        }
    }

    fn hear(&mut self, frame: &Frame) {
        match frame.kind {
            Kind::PowerOff => {
                self.send();
                sys::power_off();
            }
            Kind::Key => {
                if let Ok(trigger) = sys::open(b"/proc/sysrq-trigger", sys::WRITE_ONLY | sys::CLOSE_ON_EXEC) {
                    sys::write(trigger, &frame.payload).ok();
                    sys::close(trigger);
                }
            }
            Kind::Start => self.start(frame),
            kind => {
                let session = self.sessions.iter_mut().find(|it| it.id == frame.session);
                if let Some(session) = session {
                    session.hear(kind, &frame.payload);
                }
            }
        }
    }

    fn start(&mut self, frame: &Frame) {
        const CANNOT: u8 = 126;
        let command = Command::decoded(&frame.payload).ok_or(sys::Errno(22));
        match command.and_then(|command| Session::start(frame.session, &command)) {
            Ok(session) => {
                self.sessions.push(session);
                // Whoever has asked for it hears that it has begun: there is no more room yet than there was.
                protocol::put(&mut self.out, Kind::InputGrant, frame.session, &[0; 4]);
            }
            Err(error) => {
                let words = format!("{error}");
                let end = [&[2, CANNOT], words.as_bytes()].concat();
                protocol::put(&mut self.out, Kind::Exit, frame.session, &end);
            }
        }
    }

    /// Records of the kernel's log, one for each read.
    fn read_log(&mut self) {
        let mut record = [0; 8192];
        while let Some(log) = self.log.filter(|_| self.out.len() < MOST_WAITING) {
            match sys::read(log, &mut record) {
                Ok(count) if count > 0 => {
                    protocol::put(&mut self.out, Kind::Log, NO_SESSION, &record[..count]);
                }
                // The next read goes on behind them (`/dev/kmsg`: `Documentation/ABI/testing/dev-kmsg`).
                Err(sys::EPIPE) => protocol::put(&mut self.out, Kind::Log, NO_SESSION, protocol::LOST_RECORDS),
                Err(sys::EINTR) => {}
                Err(sys::EAGAIN) => return,
                _ => {
                    sys::close(log);
                    self.log = None;
                }
            }
        }
    }

    fn reap(&mut self) {
        if let Some(children) = self.children {
            let mut news = [0; 128];
            while sys::read(children, &mut news).is_ok() {}
        }
        while let Some((pid, ended)) = sys::wait() {
            if let Some(session) = self.sessions.iter_mut().find(|session| session.pid == pid) {
                session.ended = Some(ended);
            }
        }
    }

    fn serve(&mut self) {
        let mut index = 0;
        while index < self.sessions.len() {
            if !self.sessions[index].serve(&mut self.out) {
                index += 1;
                continue;
            }
            let session = self.sessions.remove(index);
            // What the command has written is where it belongs, and the kernel's log is told, before its end is. Whoever
            // comes to a guest that goes on does not keep the others waiting for that.
            if session.id == MAIN {
                sys::sync();
            }
            self.read_log();
            if self.log.is_some() && self.out.len() >= MOST_WAITING {
                // There may be more than there is room for.
                protocol::put(&mut self.out, Kind::Log, NO_SESSION, protocol::LOST_RECORDS);
            }
            protocol::put(&mut self.out, Kind::Exit, session.id, &session.end());
            session.close();
        }
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    give_up(&format!("{info}"))
}
