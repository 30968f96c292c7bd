//! Matrix products by a vendor's library, where a device has one (cuBLASLt): fast at every size, but a row's bits may then
//! depend on how many other rows there are.
//!
//! Such libraries store a matrix column after column: element (i, j) of \[R,C\] is at `i + j * leading`. A row-major matrix
//! \[R,C\] whose rows are `stride` apart is, to them, the matrix \[C,R\] with `leading = stride`: the same numbers,
//! transposed. So the library is asked for the transposed product, and gets every operand where it is:
//!
//! ```text
//! out = x Wᵀ          out [M,N], x [M,K], W [N,K], row-major
//! outᵀ = W xᵀ         D = op(A) B, column-major: D [N,M] is out, B [K,M] is x,
//!                     A is W as [K,N], op transposes it; or, if W's columns are neighbours, A is W as [N,K] itself
//! ```

use crate::{Element, Result};

/// A matrix in memory, column after column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ColumnMajor {
    /// The length of a column.
    pub rows: usize,
    /// How many columns there are.
    pub columns: usize,
    /// From the start of a column to that of the next, in elements.
    pub leading: usize,
    /// The type of the elements.
    pub element: Element,
}

/// `D = op(A) B`, all sums in fp32, without TF32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixProduct {
    /// The left factor.
    pub a: ColumnMajor,
    /// Whether op transposes it.
    pub a_transposed: bool,
    /// The right factor.
    pub b: ColumnMajor,
    /// The result.
    pub d: ColumnMajor,
}

/// A library of matrix products.
pub trait MatrixLibrary {
    /// Computes a product of what is at `a` and `b`, into `d`.
    ///
    /// # Errors
    /// If the library has no algorithm for it, or the device failed.
    fn multiply(&self, product: &MatrixProduct, a: u64, b: u64, d: u64) -> Result<()>;
}

impl MatrixProduct {
    /// `out = x Wᵀ` of row-major matrices: sizes \[M,N,K\], steps between the rows of x and of out, steps of the weight along
    /// N and along K (one of which is 1), types of the factors and of the result. The left factor is W, the right one x.
    pub fn linear(
        [m, n, k]: [usize; 3],
        of_x: usize,
        [of_n, of_k]: [usize; 2],
        of_out: usize,
        [element, made]: [Element; 2],
    ) -> Self {
        // The step of a matrix with one column means nothing, and may be anything; a library wants a possible one.
        let matrix = |rows: usize, columns, leading: usize, element| ColumnMajor {
            rows,
            columns,
            leading: leading.max(rows),
            element,
        };
        let a_transposed = of_k == 1;
        MatrixProduct {
            a: if a_transposed { matrix(k, n, of_n, element) } else { matrix(n, k, of_k, element) },
            a_transposed,
            b: matrix(k, m, of_x, element),
            d: matrix(n, m, of_out, made),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a library does, as the manual of cuBLASLt defines it ("cublasLtMatmul", "cublasLtMatrixLayout_t").
    fn interpret(product: &MatrixProduct, a: &[i64], b: &[i64], d: &mut [i64]) {
        let MatrixProduct { a: of_a, a_transposed, b: of_b, d: of_d } = product;
        for of in [of_a, of_b, of_d] {
            assert!(of.leading >= of.rows, "a column does not end before the next begins: {of:?}");
        }
        let place = |of: &ColumnMajor, i: usize, j: usize| {
            assert!(i < of.rows && j < of.columns, "({i}, {j}) is not in {of:?}");
            i + j * of.leading
        };
        let (inner, rows) = if *a_transposed { (of_a.rows, of_a.columns) } else { (of_a.columns, of_a.rows) };
        assert_eq!((inner, rows, of_b.columns), (of_b.rows, of_d.rows, of_d.columns));
        for (i, j) in (0..rows).flat_map(|i| (0..of_d.columns).map(move |j| (i, j))) {
            let left = |l| if *a_transposed { a[place(of_a, l, i)] } else { a[place(of_a, i, l)] };
            d[place(of_d, i, j)] = (0..inner).map(|l| left(l) * b[place(of_b, l, j)]).sum();
        }
    }

    proptest! {
        #[test]
        fn the_library_is_asked_for_x_times_w_transposed(
            [m, n, k] in [1..6_usize, 1..6_usize, 1..6_usize],
            [gap_x, gap_w, gap_out] in [0..4_usize, 0..4_usize, 0..4_usize],
            by_columns: bool,
        ) {
            // Rows of x and out, and rows or columns of W, begin a gap after the end of the one before.
            let (of_x, of_out) = (k + gap_x, n + gap_out);
            let of_w = if by_columns { [1, n + gap_w] } else { [k + gap_w, 1] };
            let x: Vec<i64> = (0..).map(|i| 3 * i % 17 - 8).take(m * of_x).collect();
            let w: Vec<i64> = (0..).map(|i| 5 * i % 23 - 11).take((n + gap_w) * (k + gap_w)).collect();
            let mut expected = vec![99; m * of_out];
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let terms = (0..k).map(|l| x[i * of_x + l] * w[j * of_w[0] + l * of_w[1]]);
                expected[i * of_out + j] = terms.sum();
            }
            let product = MatrixProduct::linear([m, n, k], of_x, of_w, of_out, [Element::Bf16, Element::F32]);
            let mut out = vec![99; m * of_out];
            interpret(&product, &w, &x, &mut out);
            prop_assert_eq!(out, expected, "{:?}", product);
            prop_assert_eq!((product.a.element, product.b.element), (Element::Bf16, Element::Bf16));
            prop_assert_eq!(product.d.element, Element::F32);
        }
    }

    #[test]
    fn the_step_of_a_single_row_is_never_impossible() {
        let product = MatrixProduct::linear([1, 3, 5], 1, [5, 1], 0, [Element::F32; 2]);
        assert_eq!((product.b.leading, product.d.leading), (5, 3));
    }
}
