//! Products with many rows: cuBLASLt's, with bias, activation and residual in them where it has them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublaslt::{result as lt, sys};
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{DType, Error, Result};

use super::kernels::{Address, NULL};
use crate::ops::Activation;

/// Plans that are kept: prompts come in all lengths.
const MOST_PLANS: usize = 4096;

/// `out = residual + activation(x . weight^T + bias)`: x (rows, inputs), weight (outputs, inputs), the others (rows,
/// outputs), but bias (outputs). A residual or an activation, not both.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlasProduct {
    pub(super) x: Address,
    pub(super) weight: Address,
    pub(super) bias: Address,
    pub(super) residual: Address,
    pub(super) out: Address,
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// One that [`Blas::has`].
    pub(super) activation: Option<Activation>,
    pub(super) dtype: DType,
}

/// What a plan is for: which kernel is best depends on all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    inputs: usize,
    outputs: usize,
    activation: Option<Activation>,
    bias: bool,
    residual: bool,
    dtype: DType,
    /// Of weight, x, residual and out, in bytes.
    alignments: [u32; 4],
}

/// cuBLASLt on one stream.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
    plans: RefCell<HashMap<Shape, Plan>>,
}

// SAFETY: its handles may be used from any thread, by one at a time: it is not `Sync`.
unsafe impl Send for Blas {}

/// How one product is described to the library, and which of its kernels it chose.
struct Plan {
    operation: Operation,
    weight: Layout,
    x: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

struct Operation(sys::cublasLtMatmulDesc_t);

struct Layout(sys::cublasLtMatrixLayout_t);

struct Preference(sys::cublasLtMatmulPreference_t);

impl Blas {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        // What NVIDIA recommends.
        const HOPPER_BYTES: usize = 32 << 20;
        const OLDER_BYTES: usize = 4 << 20;
        let major = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        let major = stream.context().attribute(major).map_err(Error::wrap)?;
        let bytes = if major >= 9 {
            HOPPER_BYTES
        } else {
            OLDER_BYTES
        };
        Ok(Self {
            workspace: stream.alloc_zeros(bytes).map_err(Error::wrap)?,
            handle: lt::create_handle().map_err(Error::wrap)?,
            stream: Arc::clone(stream),
            plans: RefCell::default(),
        })
    }

    /// Whether a product can have this activation in it.
    pub(super) fn has(activation: Activation) -> bool {
        matches!(activation, Activation::Relu | Activation::GeluTanh)
    }

    /// Launches a product.
    ///
    /// # Safety
    /// Its addresses are of memory as large as the sizes say, and alive until the stream has passed it.
    pub(super) unsafe fn product(&self, product: &BlasProduct) -> Result<()> {
        let shape = Shape::of(product);
        let mut plans = self.plans.borrow_mut();
        if !plans.contains_key(&shape) {
            if plans.len() >= MOST_PLANS {
                plans.clear();
            }
            plans.insert(shape, self.plan(&shape)?);
        }
        let plan = &plans[&shape];
        if shape.bias {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            plan.operation.set(attribute, &product.bias)?;
        }
        let residual = if shape.residual {
            product.residual
        } else {
            product.out
        };
        let (one, keep) = (1.0_f32, f32::from(u8::from(shape.residual)));
        // SAFETY: the caller vouches for the matrices, the plan is of their shapes, and the workspace is as large as
        // the plan was told.
        unsafe {
            lt::matmul(
                self.handle,
                plan.operation.0,
                (&raw const one).cast(),
                (&raw const keep).cast(),
                pointer(product.weight),
                plan.weight.0,
                pointer(product.x),
                plan.x.0,
                pointer(residual),
                plan.out.0,
                pointer(product.out).cast_mut(),
                plan.out.0,
                &raw const plan.algorithm,
                pointer(self.workspace.device_ptr(&self.stream).0).cast_mut(),
                self.workspace.len(),
                self.stream.cu_stream().cast(),
            )
            .map_err(Error::wrap)
        }
    }

    /// The library's matrices are column by column, so its product is of the transposes.
    fn plan(&self, shape: &Shape) -> Result<Plan> {
        use sys::cublasLtMatmulDescAttributes_t as of;
        use sys::cublasLtMatmulPreferenceAttributes_t as wish;
        let number = number_type(shape.dtype)?;
        let operation = Operation::new()?;
        const TRANSPOSED: i32 = 1; // CUBLAS_OP_T, which the bindings do not have
        operation.set(of::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        operation.set(of::CUBLASLT_MATMUL_DESC_EPILOGUE, &shape.epilogue()?)?;
        let weight = Layout::new(number, shape.inputs, shape.outputs)?;
        let x = Layout::new(number, shape.inputs, shape.rows)?;
        let out = Layout::new(number, shape.outputs, shape.rows)?;
        let preference = Preference::new()?;
        let bytes = self.workspace.len();
        preference.set(wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes)?;
        let alignments = [
            wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ];
        for (attribute, alignment) in alignments.into_iter().zip(shape.alignments) {
            preference.set(attribute, &alignment)?;
        }
        // SAFETY: all of these live until the end of this function.
        let found = unsafe {
            lt::get_matmul_algo_heuristic(
                self.handle,
                operation.0,
                weight.0,
                x.0,
                out.0,
                out.0,
                preference.0,
            )
        };
        let algorithm = found.map_err(Error::wrap)?.algo;
        Ok(Plan {
            operation,
            weight,
            x,
            out,
            algorithm,
        })
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.get_mut().clear();
        // SAFETY: it is ours, and nothing uses it any more. There is nobody to tell of a failure.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

impl Shape {
    fn of(product: &BlasProduct) -> Self {
        const MOST: u32 = 8; // 256 bytes
        let alignment = |address: Address| 1 << address.trailing_zeros().min(MOST);
        let residual = product.residual != NULL;
        let added = if residual {
            product.residual
        } else {
            product.out
        };
        Self {
            rows: product.rows,
            inputs: product.inputs,
            outputs: product.outputs,
            activation: product.activation,
            bias: product.bias != NULL,
            residual,
            dtype: product.dtype,
            alignments: [product.weight, product.x, added, product.out].map(alignment),
        }
    }

    fn epilogue(&self) -> Result<sys::cublasLtEpilogue_t> {
        use sys::cublasLtEpilogue_t as is;
        Ok(match (self.activation, self.bias) {
            (None, false) => is::CUBLASLT_EPILOGUE_DEFAULT,
            (None, true) => is::CUBLASLT_EPILOGUE_BIAS,
            (Some(Activation::Relu), false) => is::CUBLASLT_EPILOGUE_RELU,
            (Some(Activation::Relu), true) => is::CUBLASLT_EPILOGUE_RELU_BIAS,
            (Some(Activation::GeluTanh), false) => is::CUBLASLT_EPILOGUE_GELU,
            (Some(Activation::GeluTanh), true) => is::CUBLASLT_EPILOGUE_GELU_BIAS,
            (Some(other), _) => candle_core::bail!("cuBLASLt has no {other:?}"),
        })
    }
}

impl Operation {
    fn new() -> Result<Self> {
        let (sums, factors) = (
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        );
        let operation = lt::create_matmul_desc(sums, factors);
        operation.map(Self).map_err(Error::wrap)
    }

    /// `value` is of the type that the attribute has.
    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let from = std::ptr::from_ref(value).cast();
        // SAFETY: the library reads as many bytes as it is told.
        let set = unsafe { lt::set_matmul_desc_attribute(self.0, attribute, from, size_of::<T>()) };
        set.map_err(Error::wrap)
    }
}

impl Layout {
    fn new(number: sys::cudaDataType, rows: usize, columns: usize) -> Result<Self> {
        let layout = lt::create_matrix_layout(number, rows as u64, columns as u64, rows as i64);
        layout.map(Self).map_err(Error::wrap)
    }
}

impl Preference {
    fn new() -> Result<Self> {
        lt::create_matmul_pref().map(Self).map_err(Error::wrap)
    }

    /// `value` is of the type that the attribute has.
    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<()> {
        let from = std::ptr::from_ref(value).cast();
        // SAFETY: the library reads as many bytes as it is told.
        let set = unsafe { lt::set_matmul_pref_attribute(self.0, attribute, from, size_of::<T>()) };
        set.map_err(Error::wrap)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: it is ours alone.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: it is ours alone.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it is ours alone.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

fn number_type(dtype: DType) -> Result<sys::cudaDataType> {
    Ok(match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        other => candle_core::bail!("there are no products of {other:?}"),
    })
}

fn pointer(address: Address) -> *const c_void {
    std::ptr::with_exposed_provenance(address as usize)
}
