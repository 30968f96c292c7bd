//! What the race detector tells apart from races, since it does not matter: each beside a twin in which it does.

use crate::common::{Bench, module};
use ptx_emulator::race::RaceDetector;
use ptx_emulator::{Grid, Options};

/// Each lane adds up the squares of all lanes, and all of them store the sum to one word. The first addition is one
/// instruction with the square, as compilers write it, so that two lanes round differently. `steps` are the distances
/// of the other additions; `after` makes `%sum` of `%f9`.
fn sum_of_squares(steps: &[u32], after: &str) -> RaceDetector {
    let mut body =
        ".reg .b32 %r<4>; .reg .b32 %f<10>; .reg .b32 %t<9>; .reg .b32 %sum; .reg .b32 %lane; .reg .b64 %rd<4>;
        ld.param.u64 %rd1, [p0]; ld.param.u64 %rd2, [p1]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4;
        add.s64 %rd1, %rd1, %rd3; ld.global.b32 %f7, [%rd1]; mul.f32 %f8, %f7, %f7;
        shfl.sync.bfly.b32 %t8, %f8, 16, 31, -1; fma.rn.f32 %f0, %f7, %f7, %t8;"
            .to_string();
    for (at, step) in steps.iter().enumerate() {
        let next = at + 1;
        body += &format!("shfl.sync.bfly.b32 %t{at}, %f{at}, {step}, 31, -1; add.f32 %f{next}, %f{at}, %t{at};");
    }
    body += &format!("mov.b32 %f9, %f{}; {after} st.global.b32 [%rd2], %sum; ret;", steps.len());
    let mut bench = Bench::new(&module(2, &body));
    let values: Vec<f32> = (0..32).map(|i| 2.6 + i as f32).collect();
    let args = [bench.put(&values).into(), bench.put(&[0f32]).into()];
    let mut races = RaceDetector::new();
    let warp = Grid::linear(1, 32);
    bench.gpu.launch_watched(&bench.module, "kernel", warp, &args, Options::default(), &mut races).unwrap();
    races
}

const SAME: &str = "mov.b32 %sum, %f9;";

#[test]
fn lanes_that_add_in_different_orders_store_the_same_but_for_rounding() {
    let races = sum_of_squares(&[8, 4, 2, 1], SAME);
    assert!(races.races().is_empty(), "{}", races.races()[0]);
    let [told] = races.rounded_stores() else { panic!("{:?}", races.rounded_stores()) };
    assert!(told.apart > 0.0 && told.apart < 1e-6, "{}", told.apart);
    assert!(told.to_string().contains("the values differ by rounding, by "), "{told}");
}

/// However little they differ: what would differ without rounding too is a race.
#[test]
fn lanes_that_store_different_sums_race() {
    // One step of the reduction is missing, or is done twice.
    for steps in [&[8, 4, 2][..], &[8, 4, 1, 1]] {
        assert!(!sum_of_squares(steps, SAME).races().is_empty());
    }
    let less_than_rounding = "cvt.rn.f32.u32 %lane, %r1; fma.rn.f32 %sum, %lane, 0f33000000, %f9;";
    let races = sum_of_squares(&[8, 4, 2, 1], less_than_rounding);
    assert!(!races.races().is_empty());
}
