//! What people's hands write who come from QEMU (`qemu-system-x86_64(1)`, "Options"): a command line that
//! is refused is looked through for QEMU's options and for a kernel as an argument, and the error names what
//! is written here instead. Nothing is obeyed that is not our own.

use super::definition;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use std::ffi::OsString;
use std::path::Path;

/// QEMU's options, without their dashes (QEMU takes one or two), and what to do instead.
const OPTIONS: &[(&str, &str)] = &[
    ("kernel", "write --kernel PATH"),
    ("initrd", "write --initrd PATH"),
    ("append", "write --cmdline STR"),
    ("m", "write --memory SIZE, for example --memory 1G"),
    ("smp", "write --cpus N"),
    ("cpu", "write --cpu-template NAME or --cpu-features LIST"),
    ("s", "write --gdb :1234"),
    ("S", "--gdb :1234 alone has the guest wait at its first instruction (and --gdb-no-wait not)"),
    ("gdb", "write --gdb :1234, or --gdb unix:PATH"),
    ("nographic", "leave it out: the console is on the terminal (Ctrl-A x ends, --console none has none)"),
    ("serial", "write --console stdio, file:PATH, pty or none"),
    ("display", "leave it out: there is no display"),
    ("vga", "leave it out: there is no display"),
    ("monitor", "what there is of a monitor is gdb's `monitor help`, and `vmm dump` and `vmm release`"),
    ("qmp", "what there is of a monitor is gdb's `monitor help`, and `vmm dump` and `vmm release`"),
    ("no-reboot", "leave it out: a guest's reset ends the run (--reboot restart boots again)"),
    ("no-shutdown", "leave it out: write --dump-on panic=PATH to keep what was there"),
    ("enable-kvm", "leave it out: all guests run on KVM"),
    ("accel", "leave it out: all guests run on KVM"),
    ("machine", "leave it out: there is one machine"),
    ("M", "leave it out: there is one machine"),
    ("name", "write --name NAME"),
    ("d", "write -v, or -vv for each exit of a vCPU"),
    ("D", "write --log PATH"),
    ("version", "write vmm --version"),
    ("dtb", "leave it out: the device tree is made for the machine"),
    ("bios", "there is no firmware: write --kernel PATH"),
    ("pflash", "there is no firmware: write --kernel PATH"),
    ("device", "devices have options of their own: --disk, --net, --share, --vsock, --entropy"),
    ("virtfs", "write --share DIR,tag=NAME, and in the guest mount -t virtiofs NAME /mnt"),
    ("fsdev", "write --share DIR,tag=NAME, and in the guest mount -t virtiofs NAME /mnt"),
    ("drive", "write --disk PATH, with ,format=raw or ,format=qcow2 where the name does not say so"),
    ("hda", "write --disk PATH: the guest has it as /dev/vda"),
    ("cdrom", "write --disk PATH,ro"),
    ("snapshot", "write --disk PATH,snapshot"),
    ("netdev", "write --net user,hostfwd=tcp:2222-:22, or --net tap=NAME"),
    ("nic", "write --net user,hostfwd=tcp:2222-:22, or --net tap=NAME"),
    ("net", "write --net user,hostfwd=tcp:2222-:22, or --net tap=NAME"),
    ("redir", "write --net user,hostfwd=tcp:2222-:22"),
    ("sandbox", "leave it out: the monitor confines itself (--sandbox off does without it)"),
    ("daemonize", "write & behind the command, with --console file:PATH or none"),
];

/// The error for a refused command line, of these words behind the program's name.
pub fn explain(error: Error, words: &[OsString]) -> Error {
    let told = match error.kind() {
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand | ErrorKind::ArgumentConflict => {
            of_qemu(words)
                .or_else(|| of_the_program(&error))
                .or_else(|| positional(&error).filter(|_| !is_of_a_command(words)))
        }
        _ => None,
    };
    match told {
        Some(text) => definition().error(error.kind(), text),
        None => error,
    }
}

/// Whether a command of ours is given: what stands behind one is no kernel.
fn is_of_a_command(words: &[OsString]) -> bool {
    let ours = definition();
    words.iter().filter_map(|word| word.to_str()).any(|word| ours.find_subcommand(word).is_some())
}

/// What is told of words that are QEMU's options.
fn of_qemu(words: &[OsString]) -> Option<String> {
    let mut ours = definition();
    // Has what clap adds: --help and --version.
    ours.build();
    let is_ours = |word: &str| {
        let option = word.strip_prefix("--");
        option.is_some_and(|name| ours.get_arguments().any(|option| option.get_long() == Some(name)))
    };
    let mut told: Vec<String> = Vec::new();
    // What stands behind these is theirs, however it begins.
    let takes_dashes = |word: &str| matches!(word, "--cmdline" | "--cpu-features");
    // A command's words are its own.
    let mut words = words.iter().filter_map(|word| word.to_str()).take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        if takes_dashes(word) {
            words.next();
            continue;
        }
        let word = word.split_once('=').map_or(word, |(name, _)| name);
        let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        let Some((_, instead)) = OPTIONS.iter().find(|(known, _)| *known == name) else { continue };
        let line = format!("vmm has no {word}: {instead}");
        if !is_ours(word) && !told.contains(&line) {
            told.push(line);
        }
    }
    (!told.is_empty()).then(|| told.join("; "))
}

/// What is told of the option that the program has, and none of its commands.
fn of_the_program(error: &Error) -> Option<String> {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if word == "--version" || word == "-V" => {
            Some(format!("commands have no {word} of their own: write vmm --version"))
        }
        _ => None,
    }
}

/// What is told of an argument without an option, which may be a kernel.
fn positional(error: &Error) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let word = context(ContextKind::InvalidSubcommand).or_else(|| context(ContextKind::InvalidArg))?;
    let suggested =
        [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg].map(|kind| error.get(kind).is_some());
    if word.starts_with('-')
        || word.starts_with('<')
        || suggested.contains(&true) && !Path::new(word).exists()
    {
        return None;
    }
    Some(format!("'{word}' is none of vmm's commands: a kernel is given as --kernel {word}"))
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::Parser;

    fn explained(line: &str) -> String {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let all = std::iter::once(OsString::from("vmm")).chain(words.iter().cloned());
        explain(Cli::try_parse_from(all).unwrap_err(), &words).to_string()
    }

    #[test]
    fn options_of_qemu_are_answered_with_ours() {
        for (line, told) in [
            ("-kernel bzImage", "vmm has no -kernel: write --kernel PATH"),
            ("--kernel k -m 512", "vmm has no -m: write --memory SIZE"),
            ("--kernel k -smp 2", "vmm has no -smp: write --cpus N"),
            ("--kernel k --smp 2", "vmm has no --smp: write --cpus N"),
            ("--kernel k -s -S", "vmm has no -s: write --gdb :1234; vmm has no -S: --gdb :1234 alone"),
            ("--kernel k -append quiet", "vmm has no -append: write --cmdline STR"),
            ("--kernel k --append=quiet", "vmm has no --append: write --cmdline STR"),
            ("-initrd i", "vmm has no -initrd: write --initrd PATH"),
            ("--kernel k -nographic", "vmm has no -nographic: leave it out"),
            ("-cpu host", "vmm has no -cpu: write --cpu-template"),
            ("-virtfs local,path=x", "write --share DIR"),
            ("-netdev user,id=n", "vmm has no -netdev: write --net user"),
            ("-nic user", "vmm has no -nic: write --net user"),
            ("-drive file=x", "write --disk PATH"),
            ("bzImage -m 1G", "vmm has no -m: write --memory SIZE"),
            ("-version", "vmm has no -version: write vmm --version"),
            ("run -version", "vmm has no -version: write vmm --version"),
        ] {
            let text = explained(line);
            assert!(text.contains(told), "{line}: {text}");
        }
    }

    #[test]
    fn an_option_of_the_program_is_not_one_of_qemu() {
        for (line, word) in
            [("run --version", "--version"), ("core x -V", "-V"), ("ls --version", "--version")]
        {
            let told = format!("commands have no {word} of their own: write vmm --version");
            let text = explained(line);
            assert!(text.contains(&told) && !text.contains("vmm has no"), "{line}: {text}");
        }
        // Nor are a command's words.
        let text = explained("run --frobnicate -- gcc -m 32 --version");
        assert!(text.contains("'--frobnicate'") && !text.contains("vmm has no"), "{text}");
    }

    #[test]
    fn a_kernel_as_an_argument_is_answered_with_the_option() {
        for line in ["bzImage", "--cpus 2 arch/x86/boot/bzImage", "/boot/vmlinuz"] {
            let word = line.split_whitespace().last().unwrap();
            let told = format!("'{word}' is none of vmm's commands: a kernel is given as --kernel {word}");
            assert!(explained(line).contains(&told), "{line}: {}", explained(line));
        }
        assert!(explained("chek").contains("'check'"), "{}", explained("chek"));
        // Behind a command there is none.
        for line in ["core a.core xyzzy", "core a.core mem all", "check all"] {
            let text = explained(line);
            let word = line.split_whitespace().last().unwrap();
            assert!(!text.contains("--kernel") && text.contains(&format!("'{word}'")), "{line}: {text}");
        }
    }

    #[test]
    fn what_is_no_habit_of_qemu_is_told_as_it_is() {
        for line in ["--cmdline -s --frobnicate", "--cpu-features -d --frobnicate"] {
            let text = explained(line);
            assert!(text.contains("'--frobnicate'") && !text.contains("vmm has no"), "{line}: {text}");
        }
        let text = explained("--memory 4X");
        assert!(text.contains("512M or 4G"), "{text}");
        // Each is named once, and none is an option of ours that is written as we write it.
        for (index, (name, _)) in OPTIONS.iter().enumerate() {
            assert!(OPTIONS[index + 1..].iter().all(|(other, _)| other != name), "{name}");
        }
    }
}
