//! What was run where: the command, the commit and the machine of a run.

use std::process::Command;

use dsv2_bench_report::Machine;

/// The command line, as a person types it.
pub fn command() -> String {
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let arguments: Vec<String> = arguments.collect();
    if arguments.is_empty() { "cargo bench".into() } else { format!("cargo bench -- {}", arguments.join(" ")) }
}

/// What a program prints, if it succeeds.
pub fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// From git, or where the program was carried elsewhere from the variable DSV2_COMMIT.
pub fn commit() -> String {
    if let Ok(commit) = std::env::var("DSV2_COMMIT") {
        return commit;
    }
    let Some(hash) = output_of("git", &["rev-parse", "--short=10", "HEAD"]) else { return "unknown".into() };
    let changed = output_of("git", &["status", "--porcelain", "--untracked-files=no"]);
    if changed.is_none_or(|text| !text.is_empty()) { hash + "+" } else { hash }
}

/// This machine.
pub fn machine() -> Machine {
    let system = sysinfo::System::new_with_specifics(
        sysinfo::RefreshKind::nothing()
            .with_cpu(sysinfo::CpuRefreshKind::nothing())
            .with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()),
    );
    Machine {
        cpu: system.cpus().first().map_or_else(|| "unknown".into(), |cpu| cpu.brand().trim().to_owned()),
        threads: rayon::current_num_threads(),
        memory_gb: (system.total_memory() as f64 / 1e8).round() / 10.0,
        gpu: None,
    }
}
