//! The arithmetic of PTX, as pure functions on bits.
//!
//! A PTX register is untyped storage; the instruction gives it a type. So every function here takes and returns
//! register bits (`u16`, `u32`, `u64`), has no state, knows nothing of threads, and is small enough to be inlined into
//! a loop over the 32 lanes of a warp. Only [`fragment`], [`mma`] and [`product`] know that a warp has lanes.
//!
//! | module | instructions |
//! |---|---|
//! | [`float`] | `add` `sub` `mul` `fma` `div` `rcp` `sqrt` on `.f32` with `.rn .rz .rm .rp .ftz .sat` |
//! | [`double`] | the same on `.f64` |
//! | [`minmax`] | `min` `max` with `.NaN` and `.xorsign.abs`, `abs` `neg` `copysign` |
//! | [`compare`] | `setp` comparisons of floats, `testp` |
//! | [`approx`] | `ex2 lg2 rcp rsqrt sqrt sin cos tanh` `.approx`, `div.approx`, `div.full` |
//! | [`format`](mod@format) | the 16-bit formats: widening, narrowing, `.relu`, `.satfinite` |
//! | [`fp8`] | `.e4m3` and `.e5m2` |
//! | [`convert`] | `cvt` in every combination of types |
//! | [`half_ops`] | `.f16 .f16x2 .bf16 .bf16x2` arithmetic |
//! | [`integer`] | `mul.hi`, `mad.hi`, `div`, `rem`, `sad`, `dp4a`, carries |
//! | [`bits`] | shifts, `shf`, `bfe`, `bfi`, `bfind`, `lop3`, `prmt` |
//! | [`fragment`] | who holds which matrix element in `mma.sync` and `ldmatrix` |
//! | [`mma`] | the products of `mma.sync` that are needed most, and how sums are formed |
//! | [`product`] | all its products and layouts |
//!
//! # What "correct" means here
//!
//! The plain operations are correctly rounded, as the manual promises for the real instruction. The `.rn` path is one
//! machine instruction wherever the host has it; the directed modes go through exact integer arithmetic. Approximate
//! instructions return the correctly rounded value of the function (see [`approx`]), which lies within the error that
//! the manual allows the hardware.
//!
//! # NaN
//!
//! "Floating Point Instructions" of the manual: single precision instructions return an unspecified NaN, double
//! precision supports NaN payloads. Hardware returns [`NAN_F32`], [`NAN_F16`] and [`NAN_BF16`]; so do these functions,
//! so that results never depend on the host. For `.f64` the first NaN operand is returned, made quiet; an invalid
//! operation gives [`NAN_F64`].

pub mod approx;
pub mod bits;
pub mod compare;
pub mod convert;
pub mod double;
mod exact;
pub mod float;
pub mod format;
pub mod fp8;
pub mod fragment;
pub mod half_ops;
pub mod integer;
pub mod minmax;
pub mod mma;
pub mod product;

/// The canonical NaN of `.f32` results.
pub const NAN_F32: u32 = 0x7fff_ffff;
/// The NaN that an invalid `.f64` operation generates (`inf - inf`, `0 * inf`, square root of a negative number).
pub const NAN_F64: u64 = 0xfff8_0000_0000_0000;
/// The canonical NaN of `.f16` results.
pub const NAN_F16: u16 = 0x7fff;
/// The canonical NaN of `.bf16` results.
pub const NAN_BF16: u16 = 0x7fff;

/// A rounding modifier: `.rn .rz .rm .rp`, and the same four as `.rni .rzi .rmi .rpi` where the result is an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// `.rn`: to the nearest value, ties to the even one.
    #[default]
    Nearest,
    /// `.rz`: towards zero.
    Zero,
    /// `.rm`: towards minus infinity.
    Down,
    /// `.rp`: towards plus infinity.
    Up,
}

impl Rounding {
    /// All four modes, for tests and tables.
    pub const ALL: [Rounding; 4] = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up];
}
