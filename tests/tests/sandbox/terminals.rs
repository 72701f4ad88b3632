//! A container whose descriptors 0-2 are a terminal: the line discipline, Ctrl-C, window size and job control work.

use std::time::Duration;

use runsc_tests::{host, on_sandboxes, platform::Platform, sandbox::Runsc, terminal::Terminal};

fn start(runsc: &Runsc, program: &[&str]) -> Terminal {
    let args: Vec<&str> = ["do", "--"].iter().chain(program).copied().collect();
    Terminal::start(runsc.command(&args))
}

fn run_shell_in_a_terminal(platform: &Platform) {
    let runsc = Runsc::new(platform.kind).env("PS1", "ready> ").env("TERM", "dumb");
    let mut terminal = start(&runsc, &["busybox", "sh", "-i"]);
    terminal.expect("ready> ");
    terminal.type_("test -t 0 && test -t 1 && echo a\"\" terminal\n");
    terminal.expect("a terminal\r\n");
    terminal.type_("busybox stty size\n");
    terminal.expect("33 101\r\n");
    terminal.type_("sleep 100\n");
    terminal.expect("sleep 100\r\n");
    std::thread::sleep(Duration::from_millis(300) * host::time_scale());
    terminal.type_("\x03");
    terminal.expect("ready> ");
    terminal.type_("echo status $?\n");
    terminal.expect("status 130\r\n");
    terminal.type_("exit 9\n");
    assert_eq!(terminal.end(), 9);
}

fn run_job_control_in_a_terminal(platform: &Platform) {
    let runsc = Runsc::new(platform.kind).env("PS1", "ready> ").env("TERM", "dumb");
    let mut terminal = start(&runsc, &["bash", "--norc", "--noediting", "-i"]);
    terminal.expect("ready> ");
    terminal.type_("sleep 100\n");
    terminal.expect("sleep 100\r\n");
    std::thread::sleep(Duration::from_millis(300) * host::time_scale());
    terminal.type_("\x1a");
    terminal.expect("Stopped");
    terminal.type_("bg; jobs\n");
    terminal.expect("Running");
    terminal.type_("kill %1; wait %1; echo status $?\n");
    terminal.expect("status 143");
    terminal.type_("cat\n");
    terminal.expect("cat\r\n");
    std::thread::sleep(Duration::from_millis(200) * host::time_scale());
    terminal.type_("typed\n\x04");
    terminal.expect("typed\r\ntyped\r\n");
    terminal.type_("exit 4\n");
    assert_eq!(terminal.end(), 4);
}

on_sandboxes! {
    kvm ignored: "minutes in the emulated machine, which seldom lives as long";
    shell_in_a_terminal = run_shell_in_a_terminal;
    job_control_in_a_terminal = run_job_control_in_a_terminal;
}
