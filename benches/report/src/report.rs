//! REPORT.md and its plots, from files of results.

use std::fmt::Write;
use std::path::Path;

use dsv2_foreign::{Foreign, Markdown, Text};
use dsv2_reference::file::set;

use crate::{Plot, Result, Results, Run, Table, plot};

/// The parts of the report: what tables and plots name as their section, and the heading.
const SECTIONS: [(&str, &str); 7] = [
    ("cache", "Size of the cache"),
    ("throughput", "Throughput"),
    ("peers", "Side by side"),
    ("headline", "The paper's 5.76 times"),
    ("kernels", "Kernels"),
    ("emulator", "The emulator"),
    ("machine", "The machine"),
];

/// Writes REPORT.md, the plots (in `report-plots/`) and `REPORT.json`, all results in one file, into a folder: all of them, or
/// none ([`set::replace`]; before the results are read, [`set::check`]).
///
/// # Errors
/// If a file cannot be written or a plot cannot be drawn.
pub fn write(results: &Results, folder: &Path) -> Result<()> {
    let names: Vec<String> = plots(results).map(|plot| format!("{PLOTS}/{}.svg", plot.file)).collect();
    let mut files = vec![("REPORT.md", Text::markup(&markdown(results))), ("REPORT.json", results.json())];
    for (name, plot) in names.iter().zip(plots(results)) {
        files.push((name, Text::markup(&plot::svg(plot)?)));
    }
    let files: Vec<_> = files.into_iter().map(|(name, text)| (name, text.to_string())).collect();
    Ok(set::replace(folder, &files)?)
}

fn plots(results: &Results) -> impl Iterator<Item = &Plot> {
    results.runs.iter().flat_map(|run| &run.plots)
}

const PLOTS: &str = "report-plots";

/// The text of the report.
pub fn markdown(results: &Results) -> String {
    let mut text = String::from("# Benchmarks\n\n");
    text += "Made by `dsv2-bench-report report` of what the commands below measured; the numbers are in [REPORT.json](REPORT.json). \
             Times belong to the machine that they were taken on: compare ratios.\n\n";
    for run in &results.runs {
        describe(&mut text, run);
    }
    for (section, heading) in SECTIONS {
        let of_section: Vec<&Run> = results.runs.iter().filter(|run| has(run, section)).collect();
        if of_section.is_empty() {
            continue;
        }
        let _ = writeln!(text, "## {heading}\n");
        for run in of_section {
            let _ = writeln!(text, "{}\n", code(&run.command));
            run.tables.iter().filter(|table| table.section == section).for_each(|table| show_table(&mut text, table));
            run.plots.iter().filter(|plot| plot.section == section).for_each(|plot| show_plot(&mut text, plot));
        }
    }
    let not_run: Vec<_> = results.runs.iter().flat_map(|run| &run.not_run).collect();
    if !not_run.is_empty() {
        text += "## Not measured\n\n";
        for not_run in not_run {
            let _ = writeln!(text, "* {}: {}", Markdown(&not_run.what), Markdown(&not_run.why));
        }
    }
    text.trim_end().to_owned() + "\n"
}

/// A command as code, which a backtick would end.
fn code(command: &str) -> String {
    format!("`{}`", Foreign(command).to_string().replace('`', "'"))
}

fn has(run: &Run, section: &str) -> bool {
    run.tables.iter().any(|table| table.section == section) || run.plots.iter().any(|plot| plot.section == section)
}

fn describe(text: &mut String, run: &Run) {
    let Run { command, commit, date, profile, machine, seconds, versions, noise, .. } = run;
    let gpu = machine.gpu.as_deref().map_or(String::new(), |gpu| format!(", {}", Markdown(gpu)));
    let _ = writeln!(
        text,
        "* {} ({}): {} with {} threads, {:.0} GB{gpu}; {}, commit {}, {:.0} minutes; a load that \
         never changes strayed by {:.0} % meanwhile.",
        code(command),
        Markdown(profile),
        Markdown(&machine.cpu),
        machine.threads,
        machine.memory_gb,
        Markdown(date),
        Markdown(commit),
        seconds / 60.0,
        100.0 * noise
    );
    for (name, version) in versions {
        let _ = writeln!(text, "  * {}: {}", Markdown(name), Markdown(version));
    }
    text.push('\n');
}

fn show_table(text: &mut String, table: &Table) {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| Markdown(cell.replace('\n', " ")).to_string()).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let _ = writeln!(text, "**{}**\n", Markdown(&table.title));
    *text += &line(&table.columns);
    // The first column holds names, the others numbers.
    let rule: Vec<String> = (0..table.columns.len()).map(|c| if c == 0 { "---" } else { "---:" }.to_owned()).collect();
    *text += &line(&rule);
    table.rows.iter().for_each(|row| *text += &line(row));
    text.push('\n');
    for note in &table.notes {
        let _ = writeln!(text, "{}\n", Markdown(note));
    }
}

fn show_plot(text: &mut String, plot: &Plot) {
    let _ = writeln!(text, "![{}]({PLOTS}/{}.svg)\n", Markdown(&plot.title), plot.file);
}
