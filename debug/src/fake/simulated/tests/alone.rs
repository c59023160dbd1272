//! The debugger, the event loop and the guest's only vCPU on one thread, so that whoever waited for another would wait
//! for ever.

use super::*;
use crate::live::runner::Turn;
use std::collections::VecDeque;

struct Alone {
    tasks: Mutex<VecDeque<Task<FakeVcpu>>>,
    is_kicked: Arc<AtomicBool>,
    has_quit: AtomicBool,
}

impl Monitor for Alone {
    type Vcpu = FakeVcpu;

    fn vcpus(&self) -> u32 {
        1
    }

    fn post(&self, _: u32, task: Task<FakeVcpu>) {
        self.tasks.lock().unwrap().push_back(task);
        self.kick(0);
    }

    fn kick(&self, _: u32) {
        self.is_kicked.store(true, Ordering::SeqCst);
    }

    fn kick_among_vcpus(&self) -> Kick {
        let is_kicked = Arc::clone(&self.is_kicked);
        Box::new(move |_| is_kicked.store(true, Ordering::SeqCst))
    }

    fn quit(&self) {
        self.has_quit.store(true, Ordering::SeqCst);
    }
}

/// Runs a guest until the debugger has left it or `is_over`.
fn live(
    mut vcpu: FakeVcpu,
    processor: &Processor,
    vcpus: &Arc<Vcpus<Alone>>,
    mut debugger: Polled<Alone>,
    is_over: &AtomicBool,
) {
    /// Instructions between two looks at anything else, as a timer's signal makes them.
    const SLICE: u32 = 500;
    let mut runner = Runner::new(vcpu.isa(), Arc::new(Times::default()));
    let mut status = Status::Serving;
    while status == Status::Serving {
        while let Some(task) = vcpus.monitor().tasks.lock().unwrap().pop_front() {
            task(&mut runner, &mut vcpu);
        }
        if runner.may_run() {
            runner.run(&mut vcpu, &mut |vcpu: &mut FakeVcpu, turn: Turn<'_>| {
                if turn.is_finish() {
                    return Exit::Interrupted;
                }
                let (_inside, _) = turn.enter();
                processor.deliver(vcpu);
                (0..SLICE).find_map(|_| processor.execute(vcpu)).unwrap_or(Exit::Interrupted)
            });
        } else if vcpus.monitor().tasks.lock().unwrap().is_empty() {
            let mut fds = [PollFd::new(debugger.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, 20u8).unwrap();
        }
        if is_over.load(Ordering::SeqCst) {
            debugger.leave();
        }
        status = debugger.process().unwrap();
    }
}

#[test]
fn one_thread_serves_a_whole_session() {
    for isa in Isa::ALL {
        let path = std::env::temp_dir().join(format!("alone-{isa}-{}.sock", std::process::id()));
        let ram = SharedRam(Arc::new(Ram::new(1 << 16)));
        let (code, store, branch) = counting(isa);
        ram.write(GuestPhys(CODE), &code);
        let mut vcpu = FakeVcpu::new(isa);
        vcpu.set_pc(CODE);
        vcpu.file.set(if isa == Isa::X86_64 { "rbx" } else { "x1" }, DATA);
        let is_kicked = Arc::new(AtomicBool::new(false));
        let processor = Processor {
            ram: ram.clone(),
            is_kicked: Arc::clone(&is_kicked),
            device: Arc::default(),
            own_traps: Arc::default(),
            late_kicks: Arc::default(),
        };
        let alone = Alone { tasks: Mutex::default(), is_kicked, has_quit: AtomicBool::new(false) };
        let vcpus = Arc::new(Vcpus::new(alone));
        vcpus.resume();
        let engine = Arc::new(Engine::new(isa, host(), 1));
        let guest = Target { engine, memory: Box::new(ram.clone()) };
        let listener = ListeningSocket::bind(&Endpoint::Unix(path.clone()), Audience::Owner).unwrap();
        let debugger = Polled::attach(&vcpus, guest, listener, options()).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let (its_vcpus, its_end) = (Arc::clone(&vcpus), Arc::clone(&is_over));
        let thread = thread::spawn(move || live(vcpu, &processor, &its_vcpus, debugger, &its_end));

        let mut client = Client::new(&path);
        let (store, branch) = (CODE + store, CODE + branch);
        assert_eq!(client.ask(&format!("Z0,{store:x},4")), "OK");
        assert!(client.ask("vCont;c").contains("swbreak"), "{isa}");
        assert_eq!(client.register(isa, "pc"), store, "{isa}");
        let count = client.register(isa, "count");
        assert!(client.ask("vCont;s:p1.1").starts_with("T05"), "{isa}");
        assert_ne!(client.register(isa, "pc"), store, "{isa}");
        // What is written is there when it is read again, and the guest goes on with it.
        let number = count + 1000;
        let value: String = number.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(client.ask(&format!("P0={value}")), "OK", "{isa}");
        assert_eq!(client.register(isa, "count"), number, "{isa}");
        assert!(client.ask("vCont;c").contains("swbreak"), "{isa}");
        assert_eq!(client.register(isa, "count"), number + 1, "{isa}");
        assert_eq!(client.ask(&format!("z0,{store:x},4")), "OK");
        assert_eq!(client.ask(&format!("Z1,{branch:x},4")), "OK");
        assert!(client.ask("vCont;c").contains("hwbreak"), "{isa}");
        assert_eq!(client.ask(&format!("z1,{branch:x},4")), "OK");
        client.send("vCont;c");
        client.stream.write_all(&[3]).unwrap();
        assert!(client.reply().starts_with("T02"), "{isa}");
        // Commands ask all of a vCPU.
        assert_eq!(client.ask(&format!("qRcmd,{}", "6d61702030")), "OK", "{isa}");
        is_over.store(true, Ordering::SeqCst);
        assert!(client.is_closed());
        thread.join().unwrap();
        assert!(!vcpus.monitor().has_quit.load(Ordering::SeqCst));
        let mut bytes = vec![0; code.len()];
        ram.read(GuestPhys(CODE), &mut bytes);
        assert_eq!(bytes, code, "{isa}");
    }
}
