//! Plain products by the library of a GPU's vendor: real sums and odd ones, both layouts of the weight, rows that are apart
//! and not aligned. Where there is no GPU or no library, they are shown as not run.

use dsv2_optimized::Variant;
use dsv2_optimized::operators::gemm::linear_by_library;

use crate::gemm::{Kernel, Linear, TYPES};
use crate::harness::{Case, OnGpu};

pub fn cases() -> Vec<OnGpu> {
    let mut cases = vec![];
    for (element, made) in TYPES {
        // (M, N, K, columns before the slice of a wider matrix that x is)
        for (m, n, k, skipped) in [
            (1, 1, 1, 0),
            (3, 7, 17, 3),
            (1, 576, 2048, 0),
            (34, 24, 2048, 0),
            (2, 40, 5120, 8),
            (129, 130, 100, 12),
            (200, 1536, 64, 64),
            (1000, 512, 512, 0),
        ] {
            for by_columns in [false, true] {
                // The variant is that of our own kernels, and none of them is asked.
                let kernel = Kernel { element, made, variant: Variant::Naive };
                let input = Linear { kernel, m, n, k, skipped, bias: false, by_columns };
                let layout = if by_columns { ",by columns" } else { "" };
                let case = Case {
                    name: format!("library/{element}-to-{made}/M={m},N={n},K={k},skipped={skipped}{layout}"),
                    module: "none",
                    watched: false,
                    run: Box::new(move |device| {
                        input.judge(device, &|x, weight, _, out| linear_by_library(x, weight, out))
                    }),
                };
                cases.push(OnGpu { case, needs: Box::new(|gpu| gpu.products().map(drop)) });
            }
        }
    }
    cases
}
