//! `theta_i = theta^(-2i/r)`, i < r/2: how fast each pair of numbers turns, as fp32 numbers.

/// `1 / theta^(2i/r)` for i < r/2, rounded to fp32 after each operation, as Transformers computes it.
///
/// These are the nearest fp32 numbers at each step. PyTorch's own fp32 power differs by one unit in the last place in 1
/// % of the entries over all bases and sizes; in none for theta = 10000 and r <= 64, which every published checkpoint
/// has.
pub(super) fn inverse_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    powers(theta, dim).map(|power| 1.0 / power).collect()
}

/// The rope type `proportional`: the first `share` of the pairs turn as ever, divided by the factor; the others stand
/// still.
pub(super) fn proportional(theta: f64, dim: usize, share: f64, factor: f64) -> Vec<f32> {
    let turning = (share * dim as f64 / 2.0).floor() as usize;
    let of_pair = |(i, theta): (usize, f32)| if i < turning { theta / factor as f32 } else { 0.0 };
    inverse_frequencies(theta, dim).into_iter().enumerate().map(of_pair).collect()
}

/// `theta^(2i/r)`, rounded to fp32.
pub(super) fn powers(theta: f64, dim: usize) -> impl Iterator<Item = f32> {
    (0..dim).step_by(2).map(move |i| theta.powf(f64::from(i as f32 / dim as f32)) as f32)
}
