//! `dsv2 operator`: kernels of single operators, from whatever program they run in.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use dsv2::kernels::{Judge, KernelReport, KernelVerdict};
use dsv2::{Error, Result, output, values};
use dsv2_foreign::{Place, Text};
use dsv2_operators::contract::{TypeSpec, flashinfer};
use dsv2_operators::{Operator, Workload, tensor};

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
    /// Only this workload
    #[arg(long)]
    workload: Option<String>,
}

#[derive(Args)]
pub struct CheckArgs {
    /// The operator
    operator: String,
    /// A folder with an output file for each workload, named as its inputs are (.safetensors, .npz, .pt); or one file, for
    /// --workload
    outputs: PathBuf,
    /// Only this workload
    #[arg(long)]
    workload: Option<String>,
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
                "workloads": contract.workloads.iter().map(of_workload).collect::<indexmap::IndexMap<_, _>>(),
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
    let operator = Operator::named(&args.operator)?;
    let workloads = workloads(operator, args.workload.as_deref())?;
    let write = |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).map_err(Error::io(path, "write"));
    let mut instances = Vec::new();
    output::write_folder(&args.dir, |dir| {
        for workload in &workloads {
            let inputs = operator.inputs(workload)?;
            let file = format!("{}.safetensors", flashinfer::file_stem(workload));
            write(&dir.join(&file), &tensor::to_safetensors(&inputs))?;
            instances.push(flashinfer::Instance::new(&operator.contract, workload, &inputs, &file)?);
        }
        for (name, definition, workloads) in flashinfer::files(&instances) {
            write(&dir.join(format!("{name}.json")), definition.as_bytes())?;
            write(&dir.join(format!("{name}.jsonl")), workloads.as_bytes())?;
        }
        Ok(())
    })?;
    let said = format!("{}: inputs of {} workloads", Place(&args.dir), workloads.len());
    Ok(Done { output: Text::lines(&said), conforms: true })
}

fn check(args: &CheckArgs) -> Result<Done> {
    let operator = Operator::named(&args.operator)?;
    let mut reports = Vec::new();
    for workload in workloads(operator, args.workload.as_deref())? {
        let returned = match outputs_of(args, workload)? {
            Some(path) => values::read(&path)?.into_iter().collect(),
            None => indexmap::IndexMap::new(),
        };
        reports.push(Judge::new(operator, workload)?.judge(&returned)?);
    }
    if reports.iter().all(|report| report.verdict == KernelVerdict::NotJudged) {
        let names = operator.contract.outputs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(Error::file(&args.outputs, format!("outputs of {} ({names})", operator.contract.name), "none"));
    }
    let conforms = reports.iter().all(|report| report.verdict == KernelVerdict::Pass);
    let output = match args.json {
        true => Text::json(&serde_json::json!({ "conforms": conforms, "workloads": reports }).to_string()),
        false => for_people(&KernelReport::table(&reports, styled())),
    };
    Ok(Done { output, conforms })
}

/// The workload of this name, or all.
fn workloads<'a>(operator: &'a Operator, name: Option<&str>) -> Result<Vec<&'a Workload>> {
    Ok(match name {
        Some(name) => vec![operator.workload(name)?],
        None => operator.contract.workloads.iter().collect(),
    })
}

/// The file with what was returned for a workload, if there is one.
fn outputs_of(args: &CheckArgs, workload: &Workload) -> Result<Option<PathBuf>> {
    if !args.outputs.exists() {
        return Err(Error::file(&args.outputs, "a folder with output files, or one", "nothing"));
    }
    if !args.outputs.is_dir() {
        return match args.workload {
            Some(_) => Ok(Some(args.outputs.clone())),
            None => Err(Error::request("--workload", "the workload that this one file belongs to", "none")),
        };
    }
    let stem = flashinfer::file_stem(workload);
    let there = ["safetensors", "npz", "pt"].map(|ending| args.outputs.join(format!("{stem}.{ending}")));
    Ok(there.into_iter().find(|path| path.exists()))
}
