//! What is counted of a launch: the sums are those of the emulator's profile, the bytes those of the operands.

use std::sync::Arc;

use dsv2_optimized::operators::gemm::linear;
use dsv2_optimized::operators::swiglu::add;
use dsv2_optimized::{Device, Element, Tensor, Variant};
use dsv2_predict::{Block, Launch, Sketch, occupancy};

fn tensor(device: &Arc<dyn Device>, shape: &[usize]) -> Tensor {
    let values = vec![0.5; shape.iter().product()];
    Tensor::from_f32(device, Element::Bf16, shape, &values).unwrap()
}

fn linear_of(rows: usize, columns: usize, depth: usize) -> Launch {
    let sketch = Sketch::running();
    let device: Arc<dyn Device> = sketch.clone();
    let (x, weight) = (tensor(&device, &[rows, depth]), tensor(&device, &[columns, depth]));
    let out = Tensor::empty(&device, Element::Bf16, &[rows, columns]).unwrap();
    linear(Variant::Tuned, &x, &weight, None, &out).unwrap();
    sketch.launches().pop().unwrap()
}

#[test]
fn the_blocks_together_did_what_the_profile_says() {
    let Launch { profile, work, .. } = linear_of(16, 160, 512);
    let (total, sum) = (profile.total(), |of: fn(&Block) -> u64| work.blocks.iter().map(of).sum::<u64>());
    assert_eq!(work.blocks.len() as u64, profile.blocks);
    assert_eq!(sum(|block| block.instructions), total.warp_instructions);
    assert_eq!(sum(|block| block.wavefronts), total.wavefronts);
    assert_eq!(sum(|block| block.sectors), total.sectors);
    // 16 x 8 results for each mma, 16 of the depth.
    assert_eq!(sum(|block| block.matrix), (160 / 8) * (512 / 16));
}

#[test]
fn a_byte_that_many_blocks_read_counts_once() {
    let work = linear_of(16, 160, 512).work;
    assert_eq!((work.read, work.written), (2 * 512 * (16 + 160), 2 * 16 * 160));
    assert!(32 * work.blocks.iter().map(|block| block.sectors).sum::<u64>() > work.read + work.written);
}

#[test]
fn twice_the_depth_is_as_many_trips_more_for_each_block() {
    let trips = |depth| linear_of(1, 32, depth).work.blocks[0].trips;
    let [once, twice, thrice] = [1024, 2048, 3072].map(trips);
    assert_eq!(twice - once, 1024 / 64, "a stage of the pipeline is 64 numbers of bf16");
    assert_eq!(thrice - twice, twice - once);
}

#[test]
fn what_an_earlier_launch_has_written_does_not_come_from_memory() {
    let sketch = Sketch::running();
    let device: Arc<dyn Device> = sketch.clone();
    let (a, b) = (tensor(&device, &[16, 64]), tensor(&device, &[16, 64]));
    let [c, d] = [(); 2].map(|()| Tensor::empty(&device, Element::Bf16, &[16, 64]).unwrap());
    add(Variant::Tuned, &a, &b, &c).unwrap();
    add(Variant::Tuned, &a, &c, &d).unwrap();
    let bytes: Vec<[u64; 3]> =
        sketch.launches().iter().map(|launch| [launch.work.read, launch.work.written, launch.work.cold]).collect();
    assert_eq!(bytes, [[4096, 2048, 4096], [4096, 2048, 2048]]);
}

#[test]
fn registers_and_shared_memory_bound_how_many_blocks_find_room() {
    let work = linear_of(16, 160, 512).work;
    let alone = occupancy::resident(&work).unwrap();
    assert!(alone > 1);
    let greedy = dsv2_predict::Work { shared: 200 << 10, ..work.clone() };
    assert_eq!(occupancy::resident(&greedy), Some(1));
    let unknown = dsv2_predict::Work { kernel: "of nobody".into(), ..work };
    assert_eq!(occupancy::resident(&unknown), None);
}
