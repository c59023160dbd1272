//! The program, as far as it goes without KVM: what it answers, where that goes, and with which code it ends.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Output, Stdio};

fn vmm(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.args(words).stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

fn messages(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A dump that can be looked at: a page of zeros.
fn plain_memory() -> String {
    let path = std::env::temp_dir().join(format!("vmm-command-line-{}", std::process::id()));
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn an_answer_that_cannot_be_written_is_one_line_and_an_exit_code() {
    let memory = plain_memory();
    let dump = ["core", &memory, "--raw", "--arch", "x86_64"];
    let of_dump = |command: &[&'static str]| [&dump[..], command].concat();
    let mut lines = vec![vec!["--help"], vec!["--version"], vec!["core", "--help"], vec!["check", "--json"]];
    lines.extend(["bash", "elvish", "fish", "powershell", "zsh"].map(|shell| vec!["completions", shell]));
    lines.extend([of_dump(&["info"]), of_dump(&["threads"]), of_dump(&["info", "--json"])]);
    for words in lines {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = vmm(&words).stdout(full).output().unwrap();
        let told = messages(&output);
        // A host without KVM has a line more, of `check`.
        let lines: Vec<_> = told.lines().filter(|line| !line.contains("/dev/kvm")).collect();
        assert_eq!(output.status.code(), Some(8), "{words:?}: {told}");
        assert!(
            lines.len() == 1 && lines[0].starts_with("vmm: error: cannot write to standard output: No space"),
            "{words:?}: {told}"
        );
    }
    std::fs::remove_file(memory).unwrap();
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    for words in [&["completions", "bash"][..], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = vmm(words).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), messages(&output)), (Some(0), String::new()), "{words:?}");
    }
}

#[test]
fn a_shell_is_given_options_values_and_guests() {
    let runtime = std::env::temp_dir().join(format!("vmm-runtime-{}", std::process::id()));
    let guests = runtime.join("vmm");
    std::fs::create_dir_all(&guests).unwrap();
    std::fs::set_permissions(&guests, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    File::create(guests.join("crashy.sock")).unwrap();
    let complete = |line: &[&str]| {
        let mut command = vmm(&[&["--", "vmm"], line].concat());
        command.env("VMM_COMPLETE", "bash").env("XDG_RUNTIME_DIR", &runtime);
        // As the script for bash calls it, with the cursor in the last word.
        command.env("_CLAP_COMPLETE_INDEX", line.len().to_string()).env("_CLAP_IFS", "\n");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", messages(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    for (line, offered) in [
        (&["--guest-c"][..], "--guest-clock"),
        (&["--console", ""], "pty"),
        (&["--cpu-template", "ho"], "host"),
        (&["--gdb-lost", "h"], "hold"),
        (&["--reboot", ""], "restart"),
        (&["dump", ""], "crashy"),
        (&["release", "cr"], "crashy"),
        (&["core", "x", "regs", "ve"], "vector"),
        (&["com"], "completions"),
    ] {
        let text = complete(line);
        assert!(text.lines().any(|word| word.trim_end() == offered), "{line:?}: {text}");
    }
    std::fs::remove_dir_all(runtime).unwrap();
}

#[test]
fn an_answer_goes_to_standard_output_and_a_mistake_to_standard_error() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let output = vmm(&["--version"]).stdout(writer).output().unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("vmm ") && output.status.success(), "{text}");
    for (words, told) in [
        (&["-kernel", "bzImage"][..], "vmm has no -kernel: write --kernel PATH"),
        (&["bzImage"], "a kernel is given as --kernel bzImage"),
        (&["--cpus", "0"], "there has to be at least one"),
    ] {
        let output = vmm(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(output.stdout.is_empty() && messages(&output).contains(told), "{}", messages(&output));
    }
}
