//! Every workload of every contract can be made, means something, and tells right from wrong.

use std::collections::BTreeSet;

use dsv2_operators::contract::{AxisKind, Judged};
use dsv2_operators::{Operator, Plain, Tensor};

fn each(mut look: impl FnMut(&Operator, &dsv2_operators::Workload)) {
    for operator in Operator::all() {
        for workload in &operator.contract.workloads {
            look(operator, workload);
        }
    }
}

fn shapes_and_types(tensors: &dsv2_operators::Tensors) -> Vec<(&str, &[usize], &'static str)> {
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape(), tensor.element.name())).collect()
}

#[test]
fn inputs_are_the_same_every_time_and_what_comes_out_fits_the_contract() {
    each(|operator, workload| {
        let inputs = operator.inputs(workload).unwrap();
        let again = operator.inputs(workload).unwrap();
        assert_eq!(shapes_and_types(&inputs), shapes_and_types(&again));
        let axes = operator.contract.bind(&inputs, workload.dtype).unwrap();
        for plain in [Plain::Fp32, Plain::Operands] {
            for (name, tensor) in operator.plain(&inputs, plain).unwrap() {
                operator.contract.check_output(&name, &tensor, workload.dtype, &axes).unwrap();
            }
        }
        let named = operator.contract.instance(&axes);
        assert!(!named.contains('{'), "{named}");
    });
}

/// The reference sums in an order that depends on nothing but the length of the sum: a row alone has the bits that it has
/// among others, in fp32, and so its inputs are those of that row.
#[test]
fn a_row_alone_means_what_it_means_among_others() {
    each(|operator, workload| {
        let (contract, inputs) = (&operator.contract, operator.inputs(workload).unwrap());
        let count = contract.row_count(&inputs);
        let among = operator.plain(&inputs, Plain::Fp32).unwrap();
        for row in BTreeSet::from([0, count / 2]).into_iter().filter(|&row| row < count) {
            for (name, alone) in operator.plain(&contract.alone(&inputs, row), Plain::Fp32).unwrap() {
                let part = contract.part(&inputs, &contract.outputs[&name].shape, &among[&name], row);
                assert_eq!(alone, part, "{} \"{}\" {name}, row {row}", contract.name, workload.name);
            }
        }
    });
}

#[test]
fn nothing_that_is_garbage_reaches_the_truth() {
    each(|operator, workload| {
        for (name, tensor) in operator.truth(&operator.inputs(workload).unwrap()).unwrap() {
            let in_place = matches!(operator.contract.outputs[&name].judged, Judged::InPlace(_));
            let nan = tensor.as_real().is_some_and(|values| values.iter().any(|x| x.is_nan()));
            assert!(!nan || in_place, "{} \"{}\" {name}", operator.contract.name, workload.name);
        }
    });
}

#[test]
fn a_choice_of_the_rule_with_biases_is_never_near() {
    let operator = Operator::named("router_sigmoid_bias").unwrap();
    for workload in &operator.contract.workloads {
        let mut inputs = operator.inputs(workload).unwrap();
        let chosen = |inputs: &dsv2_operators::Tensors| {
            operator.truth(inputs).unwrap()["topk_indices"].as_index().unwrap().clone()
        };
        let want = chosen(&inputs);
        for draw in 0..20 {
            let moved = |at: usize| if ((at * 2654435761) >> draw) & 1 == 0 { 1e-5 } else { -1e-5 };
            let logits = inputs["router_logits"].as_real().unwrap();
            let mut at = 0;
            let logits = logits.mapv(|z| {
                at += 1;
                z + moved(at)
            });
            inputs.insert("router_logits".into(), Tensor::real(dsv2_operators::ElementType::Float32, logits));
            assert_eq!(chosen(&inputs), want, "{}", workload.name);
        }
    }
}

#[test]
fn every_axis_of_a_shape_is_explained_and_the_name_holds_those_that_a_kernel_is_compiled_for() {
    for Operator { contract, .. } in Operator::all() {
        let shapes =
            contract.inputs.values().map(|spec| &spec.shape).chain(contract.outputs.values().map(|spec| &spec.shape));
        for axis in shapes.flatten() {
            assert!(contract.axes.contains_key(axis), "{}: {axis}", contract.name);
        }
        let derived = |axis: &str| contract.constraints.iter().any(|text| text.contains(axis));
        for (axis, _) in contract.axes.iter().filter(|(_, axis)| axis.kind == AxisKind::Const) {
            assert!(contract.instance.contains(&format!("{{{axis}}}")) || derived(axis), "{}: {axis}", contract.name);
        }
    }
}

#[test]
fn the_readme_lists_all_operators_and_their_counts() {
    let readme = include_str!("../README.md");
    let workloads: usize = Operator::all().iter().map(|operator| operator.contract.workloads.len()).sum();
    let counts = format!("# {} operators, {workloads} workloads", Operator::all().len());
    assert!(readme.contains(&counts), "{counts}");
    let listed: BTreeSet<&str> = readme
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect();
    let all: BTreeSet<&str> = Operator::all().iter().map(|operator| operator.contract.name.as_str()).collect();
    assert_eq!(listed, all);
}

#[test]
fn what_does_not_fit_is_refused_by_its_name() {
    let operator = Operator::named("mla_paged_decode").unwrap();
    let inputs = operator.inputs(operator.workload("pages of 64").unwrap()).unwrap();
    let refusal = |change: &dyn Fn(&mut dsv2_operators::Tensors)| {
        let mut changed = inputs.clone();
        change(&mut changed);
        operator.truth(&changed).unwrap_err().to_string()
    };
    let index =
        |values: Vec<i64>| Tensor::index(dsv2_operators::ElementType::Int32, ndarray::Array1::from(values).into_dyn());
    let lines = [
        refusal(&|inputs| drop(inputs.shift_remove("sm_scale"))),
        refusal(&|inputs| drop(inputs.insert("extra".into(), index(vec![1])))),
        refusal(&|inputs| drop(inputs.insert("kv_indices".into(), index(vec![0, 1, 2])))),
        refusal(&|inputs| drop(inputs.insert("kv_last_page_len".into(), index(vec![65, 1, 1, 1])))),
        refusal(&|inputs| drop(inputs.insert("kv_indptr".into(), index(vec![0, 3, 2, 4, 8])))),
        refusal(&|inputs| drop(inputs.insert("q_pe".into(), inputs["q_nope"].clone()))),
        Operator::named("mla").err().unwrap().to_string(),
    ];
    let expected = [
        "operator mla_paged_decode, input `sm_scale`: expected a tensor, found none",
        "input `extra`: expected one of q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale",
        "operator mla_paged_decode, input `kv_indptr`: expected offsets that rise from 0 to 3, the rows of kv_indices, found [0, 1, 2, 4, 8]",
        "operator mla_paged_decode, input `kv_last_page_len`: expected 1 to 64, found 65",
        "operator mla_paged_decode, input `kv_indptr`: expected offsets that rise from 0 to 8, the rows of kv_indices, found [0, 3, 2, 4, 8]",
        "operator mla_paged_decode, input `kpe_cache`: expected [num_pages, page_size, head_dim_kpe] with head_dim_kpe = 512, found [17, 64, 64]",
    ];
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(line, expected);
    }
    assert!(lines[6].starts_with("operator `mla`: expected one of rmsnorm, "), "{}", lines[6]);
}
