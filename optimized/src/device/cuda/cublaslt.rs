//! Matrix products by cuBLASLt, NVIDIA's library, if it is installed.
//!
//! Which kernel computes a product is asked once (for its sizes, types and alignments) and remembered. Sums are fp32 to
//! their end: no TF32, and what several blocks add up for one result is added in fp32 too.

mod functions;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::from_ref;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;

use super::Cuda;
use super::memory::Driver;
use crate::device::products::{ColumnMajor, MatrixLibrary, MatrixProduct};
use crate::{Element, Error};
use functions::Functions;

/// What the library may use of the device's memory while it works: NVIDIA's advice for Hopper, and enough before it.
const WORKSPACE: usize = 32 << 20;

/// The library, opened. All calls need the GPU's context to be current.
#[derive(Debug)]
pub(super) struct CublasLt {
    functions: &'static Functions,
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: Mutex<HashMap<Question, Plan>>,
}

// SAFETY: the library's handle may be used from any thread, and the plans are behind a lock.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// What the choice of a kernel depends on: the product, and how the operands are aligned.
type Question = (MatrixProduct, [u32; 3]);

/// A product as the library knows it, and the kernel for it.
#[derive(Debug)]
struct Plan {
    functions: &'static Functions,
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Cuda {
    /// The library, which is opened when it is first asked for.
    pub(super) fn cublaslt(&self) -> crate::Result<&CublasLt> {
        if self.products.get().is_none() {
            let _pass = self.gate.outside("opening cuBLASLt")?;
        }
        let open = || {
            // The library's workspace comes from the driver, which may have given the pool all there is.
            self.pool().release(&mut Driver(self));
            self.with_context("cuBLASLt", || Ok(CublasLt::open())).unwrap_or_else(|error| Err(error.to_string()))
        };
        let opened = self.products.get_or_init(open).as_ref();
        opened.map_err(|reason| Error::operand("products", "library", "cuBLASLt beside the driver", reason))
    }
}

impl MatrixLibrary for Cuda {
    fn multiply(&self, product: &MatrixProduct, a: u64, b: u64, d: u64) -> crate::Result<()> {
        let library = self.cublaslt()?;
        let mut outcome = Ok(());
        self.queued(&format!("cublaslt_{}", product.a.element), || {
            outcome = library.multiply(product, [a, b, d], self.queue.stream);
            Ok(())
        })?;
        outcome.map_err(|error| Error::Driver { what: format!("cuBLASLt: {product:?}"), message: error.to_string() })
    }
}

impl CublasLt {
    /// Opens the library; or says why not.
    fn open() -> Result<Self, String> {
        let functions = Functions::load()?;
        let handle = made(|handle| {
            // SAFETY: a place for a handle.
            unsafe { (functions.create)(handle) }
        });
        let handle = handle.map_err(|error| error.to_string())?;
        // SAFETY: memory that nobody has yet.
        match unsafe { cudarc::driver::result::malloc_sync(WORKSPACE) } {
            Ok(workspace) => Ok(CublasLt { functions, handle, workspace, plans: Mutex::default() }),
            Err(_) => {
                // SAFETY: made above, and nobody else has it.
                let _ = unsafe { (functions.destroy)(handle) };
                Err(format!("no {WORKSPACE} bytes for its workspace"))
            }
        }
    }

    /// Asks the GPU for a product, in the stream that kernels are launched into.
    fn multiply(&self, product: &MatrixProduct, [a, b, d]: [u64; 3], stream: CUstream) -> Result<(), CublasError> {
        let plans = &mut *self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let question = (*product, [a, b, d].map(alignment));
        let plan = match plans.entry(question) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::make(self.functions, self.handle, &question)?),
        };
        let Plan { description, layouts: [of_a, of_b, of_d], algorithm, .. } = plan;
        let (one, zero) = (1.0f32, 0.0f32);
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: the plan is the library's own; that the operands are as large as it says is the operators' care.
        unsafe {
            (self.functions.multiply)(
                self.handle,
                *description,
                from_ref(&one).cast(),
                pointer(a),
                *of_a,
                pointer(b),
                *of_b,
                from_ref(&zero).cast(),
                pointer(d),
                *of_d,
                pointer(d),
                *of_d,
                algorithm,
                pointer(self.workspace),
                WORKSPACE,
                stream,
            )
        }
        .result()
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: made by `open`, and nobody else has them. The driver waits for work that uses the workspace.
        unsafe {
            let _ = (self.functions.destroy)(self.handle);
            let _ = cudarc::driver::result::free_sync(self.workspace);
        }
    }
}

impl Plan {
    /// Asks for the kernel that the library thinks is the fastest.
    fn make(
        functions: &'static Functions,
        handle: sys::cublasLtHandle_t,
        (product, alignments): &Question,
    ) -> Result<Self, CublasError> {
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let none = sys::cublasLtMatmulAlgo_t { data: [0; 8] };
        let null = [std::ptr::null_mut(); 3];
        let description = made(|place| {
            // SAFETY: a place for a description.
            unsafe { (functions.create_description)(place, compute, scale) }
        })?;
        // From here on an error gives back what was made so far: the plan is dropped.
        let mut plan = Plan { functions, description, layouts: null, algorithm: none };
        for (layout, matrix) in plan.layouts.iter_mut().zip([product.a, product.b, product.d]) {
            let ColumnMajor { rows, columns, leading, element } = matrix;
            let (rows, columns, leading) = (rows as u64, columns as u64, leading as i64);
            *layout = made(|place| {
                // SAFETY: a place for a layout.
                unsafe { (functions.create_layout)(place, number_type(element), rows, columns, leading) }
            })?;
        }
        use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA as TRANSPOSE_A;
        // CUBLAS_OP_N and CUBLAS_OP_T.
        let transposed = i32::from(product.a_transposed);
        // SAFETY: the description was just made; the library copies the number.
        unsafe { (functions.describe)(plan.description, TRANSPOSE_A, from_ref(&transposed).cast(), 4) }.result()?;
        let preference = made(|place| {
            // SAFETY: a place for a preference.
            unsafe { (functions.create_preference)(place) }
        })?;
        let found = plan.choose(handle, preference, *alignments);
        // SAFETY: made above, and not used any more.
        let _ = unsafe { (functions.destroy_preference)(preference) };
        plan.algorithm = found?;
        Ok(plan)
    }

    /// The library's choice among the kernels that need no more memory than there is, no better alignment than there is,
    /// and keep partial sums in fp32.
    fn choose(
        &self,
        handle: sys::cublasLtHandle_t,
        preference: sys::cublasLtMatmulPreference_t,
        [a, b, d]: [u32; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let set = |attribute, number: *const c_void, bytes| {
            // SAFETY: the preference was just made; the library copies the number.
            unsafe { (self.functions.prefer)(preference, attribute, number, bytes) }.result()
        };
        let partial_sums = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, from_ref(&WORKSPACE).cast(), size_of::<usize>())?;
        for (attribute, number) in [
            (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, partial_sums),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, d),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
        ] {
            set(attribute, from_ref(&number).cast(), size_of::<u32>())?;
        }
        let [of_a, of_b, of_d] = self.layouts;
        let (mut found, mut count) = (MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(), 0);
        // SAFETY: all of them are made, and live; there is room for one answer.
        unsafe {
            let of = self.description;
            (self.functions.choose)(handle, of, of_a, of_b, of_d, of_d, preference, 1, found.as_mut_ptr(), &mut count)
        }
        .result()?;
        if count == 0 {
            return Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        }
        // SAFETY: the library said that it wrote one.
        let found = unsafe { found.assume_init() };
        found.state.result()?;
        Ok(found.algo)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `make`, and given back only here.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = (self.functions.destroy_layout)(layout);
            }
            let _ = (self.functions.destroy_description)(self.description);
        }
    }
}

/// What a call of the library puts where it is told to, if it says that it did.
fn made<T>(call: impl FnOnce(*mut T) -> sys::cublasStatus_t) -> Result<T, CublasError> {
    let mut place = MaybeUninit::uninit();
    call(place.as_mut_ptr()).result()?;
    // SAFETY: it did.
    Ok(unsafe { place.assume_init() })
}

/// The largest power of two that divides an address, as far as the library cares.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

fn number_type(element: Element) -> sys::cudaDataType {
    match element {
        Element::F32 => sys::cudaDataType::CUDA_R_32F,
        Element::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Element::I32 => sys::cudaDataType::CUDA_R_32I,
    }
}
