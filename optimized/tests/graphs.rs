//! Graphs on the emulator; on a driver the same is asked by the target `driver`.

use std::sync::Arc;

use dsv2_optimized::{Device, Emulated, Library};

use crate::support::graphs;

fn device() -> Arc<dyn Device> {
    Emulated::new(Library::embedded())
}

#[test]
fn a_graph_does_what_was_asked_for_each_time_it_is_launched_and_nothing_before() {
    graphs::replays(&device());
}

#[test]
fn what_a_graph_cannot_hold_is_refused_and_the_device_works_on() {
    graphs::refuses(&device());
}

#[test]
fn everything_that_is_asked_is_counted() {
    graphs::counts(&device());
}

#[test]
fn a_grid_that_no_gpu_takes_is_refused_whatever_the_kernel() {
    graphs::refuses_grids(&device());
}

#[test]
fn a_graph_whose_memory_was_given_back_is_found() {
    let device = device();
    let place = device.allocate(4).unwrap();
    let graph = device.clone().capture(&mut || device.fill(place, 7, 4)).unwrap();
    device.free(place);
    let error = graph.launch().unwrap_err().to_string();
    assert!(error.contains("no global memory is there"), "{error}");
}
