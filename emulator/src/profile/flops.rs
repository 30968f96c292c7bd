//! How many floating-point operations an instruction is, by the convention of operation counts: see
//! [`Counts::flops`](super::Counts::flops).

/// The operations of one lane. The lanes of an `mma` share its operations evenly.
pub(super) fn of_a_lane(opcode: &str) -> u64 {
    let mut words = opcode.split('.');
    let name = words.next().unwrap_or_default();
    let operations = match name {
        "mma" => return words.find_map(shape).map_or(0, |[m, n, k]| 2 * m * n * k / 32),
        "atom" | "red" if opcode.split('.').any(|word| word == "add") => 1,
        "add" | "sub" | "mul" | "div" | "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => 1,
        "fma" | "mad" => 2,
        _ => return 0,
    };
    let width = words.find_map(|word| match word {
        "f32" | "f64" | "f16" | "bf16" => Some(1),
        "f16x2" | "bf16x2" => Some(2),
        _ => None,
    });
    operations * width.unwrap_or(0)
}

/// `m16n8k16`
fn shape(word: &str) -> Option<[u64; 3]> {
    let (m, rest) = word.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    let size = |text: &str| text.parse::<u16>().ok().map(u64::from);
    Some([size(m)?, size(n)?, size(k)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations() {
        for (opcode, flops) in [
            ("add.f32", 1),
            ("fma.rn.f32", 2),
            ("mad.rn.f64", 2),
            ("fma.rn.bf16x2", 4),
            ("mul.f16x2", 2),
            ("add.f16", 1),
            ("rsqrt.approx.f32", 1),
            ("div.rn.f32", 1),
            ("atom.global.add.f32", 1),
            ("red.global.add.noftz.bf16x2", 2),
            ("atom.global.exch.b32", 0),
            ("mad.lo.s32", 0),
            ("add.s32", 0),
            ("max.f32", 0),
            ("cvt.rn.f16.f32", 0),
            ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 4096 / 32),
            ("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", 2048 / 32),
        ] {
            assert_eq!(of_a_lane(opcode), flops, "{opcode}");
        }
    }
}
