//! A profile as text.

use std::fmt::{Display, Formatter, Result};

use super::{Counts, Line, Profile};
use crate::error::located;

/// How many lines each list shows.
const SHOWN: usize = 8;

impl Display for Profile {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let total = self.total();
        writeln!(f, "launched: blocks {}, warps {}, threads {}", self.blocks, self.warps, self.threads)?;
        writeln!(
            f,
            "instructions: {} of warps, {} of threads, {} of 32 lanes active",
            total.warp_instructions,
            total.thread_instructions,
            decimals(total.active_lanes(), 1)
        )?;
        writeln!(
            f,
            "floating point: {} operations, {} for a byte requested of global memory, {} for a byte of its sectors",
            total.flops,
            decimals(total.intensity_of_requests(), 3),
            decimals(total.intensity_of_sectors(), 3)
        )?;
        classes(f, self, &total)?;
        traffic(f, &total)?;
        writeln!(f, "\nThe hottest lines")?;
        writeln!(f, "{:>12} {:>6} {:>6}  place", "warp instr.", "share", "lanes")?;
        let hottest = self.hottest();
        for line in hottest.iter().take(SHOWN) {
            let Counts { warp_instructions: count, .. } = line.counts;
            let lanes = decimals(line.counts.active_lanes(), 1);
            writeln!(f, "{count:>12} {:>6} {lanes:>6}  {line}", percent(count, total.warp_instructions))?;
        }
        more(f, hottest.len())?;
        let numbers = |counts: &Counts| (counts.sectors, counts.ideal_sectors, counts.global.requests);
        list(f, "Uncoalesced accesses (model)", "sectors", &self.uncoalesced(), numbers)?;
        let numbers = |counts: &Counts| (counts.wavefronts, counts.ideal_wavefronts, counts.shared.requests);
        list(f, "Bank conflicts (model)", "wavefronts", &self.conflicts(), numbers)
    }
}

impl Display for Line {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(&self.kernel)?;
        located(f, &self.source, self.line, &self.opcode)
    }
}

fn classes(f: &mut Formatter<'_>, profile: &Profile, total: &Counts) -> Result {
    writeln!(f, "\n{:<18} {:>14} {:>6} {:>6} {:>16}", "class", "warp instr.", "share", "lanes", "flop")?;
    for (class, counts) in profile.by_class() {
        let Counts { warp_instructions: count, flops, .. } = counts;
        let (share, lanes) = (percent(count, total.warp_instructions), decimals(counts.active_lanes(), 1));
        writeln!(f, "{class:<18} {count:>14} {share:>6} {lanes:>6} {flops:>16}")?;
    }
    Ok(())
}

fn traffic(f: &mut Formatter<'_>, total: &Counts) -> Result {
    let spaces = [
        ("global", total.global),
        ("shared", total.shared),
        ("local", total.local),
        ("const", total.constant),
        ("param", total.param),
    ];
    writeln!(f, "\n{:<18} {:>14} {:>14} {:>14} {:>14}", "memory", "requests", "bytes read", "written", "atomic")?;
    for (name, space) in spaces.into_iter().filter(|(_, space)| space.requests > 0) {
        let [requests, read, written, atomic] = [space.requests, space.read, space.written, space.atomic];
        writeln!(f, "{name:<18} {requests:>14} {read:>14} {written:>14} {atomic:>14}")?;
    }
    if total.sectors > 0 {
        let (share, lines) = (percent(total.ideal_sectors, total.sectors), total.cache_lines);
        let (sectors, ideal) = (total.sectors, total.ideal_sectors);
        writeln!(f, "global (model): {sectors} sectors where {ideal} would do ({share}), in {lines} lines")?;
    }
    if total.wavefronts > 0 {
        let (share, ideal) = (percent(total.ideal_wavefronts, total.wavefronts), total.ideal_wavefronts);
        writeln!(f, "shared (model): {} wavefronts where {ideal} would do ({share})", total.wavefronts)?;
    }
    Ok(())
}

/// The lines that have more of something than they need.
fn list(
    f: &mut Formatter<'_>,
    title: &str,
    unit: &str,
    lines: &[&Line],
    numbers: impl Fn(&Counts) -> (u64, u64, u64),
) -> Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{title}\n{unit:>12} {:>12} {:>12}  place", "ideal", "per request")?;
    for line in lines.iter().take(SHOWN) {
        let (have, ideal, requests) = numbers(&line.counts);
        let each = decimals((requests > 0).then(|| have as f64 / requests as f64), 1);
        writeln!(f, "{have:>12} {ideal:>12} {each:>12}  {line}")?;
    }
    more(f, lines.len())
}

/// How many lines of a list are not shown.
fn more(f: &mut Formatter<'_>, lines: usize) -> Result {
    if lines > SHOWN { writeln!(f, "and {} more", lines - SHOWN) } else { Ok(()) }
}

fn decimals(number: Option<f64>, digits: usize) -> String {
    number.map_or_else(|| "-".to_string(), |number| format!("{number:.digits$}"))
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_string() } else { format!("{:.1}%", 100.0 * part as f64 / whole as f64) }
}
