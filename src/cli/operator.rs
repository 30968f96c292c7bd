//! `dsv2 operator`: kernels of single operators, from whatever program they run in.

mod trials;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use dsv2::kernels::{Judge, KernelReport, KernelVerdict, chosen_rows};
use dsv2::values::Values;
use dsv2::{Error, Result, output, values};
use dsv2_foreign::{Place, Text};
use dsv2_operators::contract::{TypeSpec, flashinfer};
use dsv2_operators::{Operator, Workload, tensor};
use indexmap::IndexMap;
use trials::Trials;

use super::{Done, for_people, styled};

#[derive(Subcommand)]
pub enum OperatorCommand {
    /// Which operators and workloads there are
    List(ListArgs),
    /// Write an operator's definition, and the inputs of its workloads, for a kernel to be run on
    Inputs(InputsArgs),
    /// Judge what a kernel returned
    Check(CheckArgs),
}

#[derive(Args)]
pub struct ListArgs {
    /// Print one JSON object in place of lines
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct InputsArgs {
    /// The operator
    operator: String,
    /// The folder to write; it must not exist, or be empty
    dir: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Write some rows of each workload alone, too: STEM.row_N.safetensors
    #[arg(long)]
    rows: bool,
}

/// Which workloads are meant.
#[derive(Args)]
pub struct Which {
    /// Only this workload
    #[arg(long)]
    workload: Option<String>,
    /// In place of ours, those of this file of FlashInfer-Bench: one a line
    #[arg(long, value_name = "FILE")]
    workloads: Option<PathBuf>,
    /// Their definition, if it lies neither beside them nor in their trace set
    #[arg(long, value_name = "FILE", requires = "workloads")]
    definition: Option<PathBuf>,
}

#[derive(Args)]
pub struct CheckArgs {
    /// The operator
    operator: String,
    /// A folder with an output file for each workload, named as its inputs are (.safetensors, .npz, .pt); or one file, for
    /// --workload
    outputs: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Fail, too, where a row has other bits alone (`inputs --rows`) than among others
    #[arg(long)]
    batch_invariant: bool,
    /// Print one JSON object in place of a table
    #[arg(long)]
    json: bool,
}

pub fn run(command: &OperatorCommand) -> Result<Done> {
    match command {
        OperatorCommand::List(args) => list(args),
        OperatorCommand::Inputs(args) => inputs(args),
        OperatorCommand::Check(args) => check(args),
    }
}

fn list(args: &ListArgs) -> Result<Done> {
    if args.json {
        let of = |Operator { contract, .. }: &Operator| {
            let of_workload = |workload: &Workload| {
                let file = format!("{}.safetensors", flashinfer::file_stem(workload));
                (workload.name.clone(), serde_json::json!({ "file": file, "dtype": workload.dtype }))
            };
            serde_json::json!({
                "name": contract.name,
                "description": contract.description,
                "inputs": contract.inputs,
                "outputs": contract.outputs,
                "garbage": contract.garbage,
                "rows": contract.rows,
                "workloads": contract.workloads.iter().map(of_workload).collect::<IndexMap<_, _>>(),
            })
        };
        let all: Vec<_> = Operator::all().iter().map(of).collect();
        return Ok(Done { output: Text::json(&serde_json::json!({ "operators": all }).to_string()), conforms: true });
    }
    let mut lines = Vec::new();
    for Operator { contract, .. } in Operator::all() {
        lines.push(format!("{}: {}", contract.name, contract.description));
        let typed =
            |name: &str, shape: &[String], dtype: TypeSpec| format!("{name}: {} [{}]", dtype.name(), shape.join(", "));
        let given = contract.inputs.iter().map(|(name, spec)| typed(name, &spec.shape, spec.dtype));
        lines.push(format!("    {}", given.collect::<Vec<_>>().join(", ")));
        let outputs = contract.outputs.iter().map(|(name, spec)| typed(name, &spec.shape, spec.dtype));
        lines.push(format!("    -> {}", outputs.collect::<Vec<_>>().join(", ")));
        lines.extend(contract.garbage.iter().map(|what| format!("    garbage: {what}")));
        let names = contract.workloads.iter().map(|workload| workload.name.as_str());
        lines.push(format!("    workloads: {}", names.collect::<Vec<_>>().join("; ")));
    }
    Ok(Done { output: Text::lines(&lines.join("\n")), conforms: true })
}

fn inputs(args: &InputsArgs) -> Result<Done> {
    let trials = Trials::of(&args.operator, &args.which)?;
    let write = |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).map_err(Error::io(path, "write"));
    let mut instances = Vec::new();
    let mut files = 0;
    output::write_folder(&args.dir, |dir| {
        for trial in 0..trials.len() {
            let (inputs, stem) = (trials.inputs(trial)?, trials.stem(trial));
            let file = format!("{stem}.safetensors");
            write(&dir.join(&file), &tensor::to_safetensors(&inputs))?;
            files += 1;
            let rows = if args.rows { chosen_rows(trials.operator, &inputs) } else { Vec::new() };
            for row in rows {
                let alone = trials.operator.contract.alone(&inputs, row);
                write(&dir.join(format!("{}.safetensors", of_row(&stem, row))), &tensor::to_safetensors(&alone))?;
                files += 1;
            }
            if let Some(workload) = trials.workload(trial) {
                instances.push(flashinfer::Instance::new(&trials.operator.contract, workload, &inputs, &file)?);
            }
        }
        for (name, definition, workloads) in flashinfer::files(&instances) {
            write(&dir.join(format!("{name}.json")), definition.as_bytes())?;
            write(&dir.join(format!("{name}.jsonl")), workloads.as_bytes())?;
        }
        Ok(())
    })?;
    let alone = if args.rows { format!(", {} of rows alone", files - trials.len()) } else { String::new() };
    let said = format!("{}: inputs of {} workloads{alone}", Place(&args.dir), trials.len());
    Ok(Done { output: Text::lines(&said), conforms: true })
}

fn check(args: &CheckArgs) -> Result<Done> {
    let trials = Trials::of(&args.operator, &args.which)?;
    let contract = &trials.operator.contract;
    if args.batch_invariant && contract.rows.is_none() {
        let expected = "an operator of which rows can be given alone";
        return Err(Error::request("--batch-invariant", expected, &contract.name));
    }
    let mut reports = Vec::new();
    // of a row alone only where there are two or more
    let mut untried = None;
    for trial in 0..trials.len() {
        let returned = match outputs_of(args, &trials, &trials.stem(trial))? {
            Some(path) => read(&path)?,
            None => IndexMap::new(),
        };
        let judge = Judge::of(trials.operator, &trials.name(trial), trials.dtype(trial), trials.inputs(trial)?)?;
        let mut report = judge.judge(&returned)?;
        let rows = chosen_rows(trials.operator, judge.inputs());
        let mut alone = Vec::new();
        for &row in rows.iter().filter(|_| args.outputs.is_dir()) {
            if let Some(path) = outputs_of(args, &trials, &of_row(&trials.stem(trial), row))? {
                alone.push((row, read(&path)?));
            }
        }
        report.batch_invariance = judge.batch_invariance(&returned, &alone);
        if !rows.is_empty() && report.batch_invariance.is_none() {
            untried.get_or_insert_with(|| of_row(&trials.stem(trial), rows[0]));
        }
        reports.push(report);
    }
    if reports.iter().all(|report| report.verdict == KernelVerdict::NotJudged) {
        let names = contract.outputs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(Error::file(&args.outputs, format!("outputs of {} ({names})", contract.name), "none"));
    }
    if let Some(stem) = untried.filter(|_| args.batch_invariant) {
        let expected = format!("outputs of rows alone (inputs --rows), such as {stem}.safetensors");
        return Err(Error::file(&args.outputs, expected, "none"));
    }
    let varies = |report: &KernelReport| report.batch_invariance.as_ref().is_some_and(|measured| !measured.invariant);
    let conforms = reports.iter().all(|report| report.verdict == KernelVerdict::Pass)
        && !(args.batch_invariant && reports.iter().any(varies));
    let output = match args.json {
        true => Text::json(&serde_json::json!({ "conforms": conforms, "workloads": reports }).to_string()),
        false => for_people(&KernelReport::table(&reports, styled())),
    };
    Ok(Done { output, conforms })
}

fn read(path: &Path) -> Result<IndexMap<String, Values>> {
    Ok(values::read(path)?.into_iter().collect())
}

/// What the files of a row alone are called.
fn of_row(stem: &str, row: usize) -> String {
    format!("{stem}.row_{row}")
}

/// The file with what was returned for a workload, or a row of it, if there is one.
fn outputs_of(args: &CheckArgs, trials: &Trials, stem: &str) -> Result<Option<PathBuf>> {
    if !args.outputs.exists() {
        return Err(Error::file(&args.outputs, "a folder with output files, or one", "nothing"));
    }
    if !args.outputs.is_dir() {
        return match trials.len() {
            1 => Ok(Some(args.outputs.clone())),
            _ => Err(Error::request("--workload", "the workload that this one file belongs to", "none")),
        };
    }
    let there = ["safetensors", "npz", "pt"].map(|ending| args.outputs.join(format!("{stem}.{ending}")));
    Ok(there.into_iter().find(|path| path.exists()))
}
