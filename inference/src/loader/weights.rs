//! Named tensors out of safetensors, PyTorch and GGUF files, one at a time.
//!
//! Tensors are read when asked for, so that no more than one of them is in memory twice. Not memory-mapped:
//! that needs `unsafe`, and every tensor is copied to its own storage anyhow.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::pickle::PthTensors;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};

use super::device::free_bytes;
use super::files::WeightFiles;
use super::gguf::{Gguf, GgufError, RowOrder, Stored};
use super::inventory::{self, Listed};
use super::progress::Progress;
use crate::ops::{Matrix, PackedMatrix, StoredRows, is_packable};
use crate::tensor_error::TensorError;

/// Why a tensor could not be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what its name says.
    #[error("{} is not understood: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No file has this tensor.
    #[error("the weights have no tensor {name}")]
    Missing {
        /// Its name.
        name: String,
    },
    /// The tensor has another shape than config.json makes it.
    #[error("tensor {name} has shape {found:?}, config.json makes it {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// As config.json has it.
        expected: Vec<usize>,
        /// As the file has it.
        found: Vec<usize>,
    },
    /// The files have tensors that nobody has read: what config.json says is another model.
    #[error(
        "config.json has no place for {count} of the weights' tensors, such as {example}: \
         it describes another model"
    )]
    Unread {
        /// How many.
        count: usize,
        /// The first by name.
        example: String,
    },
    /// The memory does not hold them.
    #[error(
        "the weights take {needed_bytes} bytes of memory, {available_bytes} are there: use {}",
        smaller(*half_bytes)
    )]
    TooLarge {
        /// What they take in the type that was chosen.
        needed_bytes: u64,
        /// What is there, on the device.
        available_bytes: u64,
        /// What they take in 16 bits, if that is less.
        half_bytes: Option<u64>,
    },
    /// A GGUF lacks it, or what it says of it is wrong.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The device or the library failed.
    #[error("tensors cannot be made")]
    Tensor(#[from] TensorError),
}

impl From<candle_core::Error> for WeightsError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.into())
    }
}

/// What to do about weights that are too large.
fn smaller(half_bytes: Option<u64>) -> String {
    let dtype = half_bytes
        .map(|bytes| format!("--dtype bfloat16, by which they take {bytes}, or "))
        .unwrap_or_default();
    format!("{dtype}a smaller or quantised model")
}

/// The weights of a model, on their way to a device and a type.
#[derive(Debug)]
pub struct Weights {
    sources: Vec<Source>,
    device: Device,
    dtype: DType,
    /// The tensors that were asked for.
    read: RefCell<HashSet<String>>,
    progress: Progress,
}

#[derive(Debug)]
enum Source {
    Safetensors(SafetensorsFile),
    PyTorch(PyTorchFile),
    Gguf(Arc<Gguf>),
}

#[derive(Debug)]
struct SafetensorsFile {
    path: PathBuf,
    file: RefCell<File>,
    /// Where tensor data starts.
    data_start: u64,
    tensors: HashMap<String, TensorInfo>,
}

struct PyTorchFile {
    path: PathBuf,
    tensors: PthTensors,
}

impl Weights {
    /// Reads the headers of all files.
    pub fn open(files: &WeightFiles, device: Device, dtype: DType) -> Result<Self, WeightsError> {
        let mut total_bytes = 0;
        for path in files.paths() {
            total_bytes += std::fs::metadata(path).map_err(io_error(path))?.len();
        }
        let sources = match files {
            WeightFiles::Safetensors(paths) => paths
                .iter()
                .map(|path| SafetensorsFile::open(path).map(Source::Safetensors))
                .collect::<Result<_, _>>()?,
            WeightFiles::PyTorch(paths) => paths
                .iter()
                .map(|path| PyTorchFile::open(path).map(Source::PyTorch))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self::new(sources, total_bytes, (device, dtype)))
    }

    /// Those in a GGUF.
    pub fn of_gguf(gguf: Arc<Gguf>, device: Device, dtype: DType) -> Result<Self, WeightsError> {
        let path = gguf.path();
        let total_bytes = std::fs::metadata(path).map_err(io_error(path))?.len();
        let sources = vec![Source::Gguf(gguf)];
        Ok(Self::new(sources, total_bytes, (device, dtype)))
    }

    fn new(sources: Vec<Source>, total_bytes: u64, (device, dtype): (Device, DType)) -> Self {
        Self {
            sources,
            device,
            dtype,
            read: RefCell::default(),
            progress: Progress::new("loading weights".to_owned(), total_bytes),
        }
    }

    /// Where the tensors go.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What their numbers become.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// True if some file has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.sources.iter().any(|source| source.contains(name))
    }

    /// True if matrices are (out, in) even in models that have them the other way round: GGUF's order.
    pub(crate) fn outputs_first(&self) -> bool {
        matches!(self.sources.as_slice(), [Source::Gguf(_)])
    }

    /// True if norms around 0 are stored as what to multiply with even in models that have them as the
    /// distance from 1: llama.cpp's converter adds it.
    pub(crate) fn has_whole_norms(&self) -> bool {
        self.outputs_first()
    }

    /// The matrix of this name, (out, in), which must have this shape: packed on a CPU, as it is quantised where
    /// products can be made of that, or else in the model's type.
    pub(crate) fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<Matrix, WeightsError> {
        if let ([Source::Gguf(gguf)], Device::Cpu) = (self.sources.as_slice(), &self.device)
            && gguf.dtype(name).is_some_and(is_packable)
            && let Some(stored) = gguf.read(name)?
        {
            check_shape(name, &stored.dims, &[shape.0, shape.1])?;
            self.note_read(name, stored.bytes.len());
            let rows = StoredRows {
                dtype: stored.dtype,
                bytes: &stored.bytes,
                shape,
            };
            let rows = PackedMatrix::pack(rows, |row| stored.order.stored(row))?;
            return Ok(self.packed(rows));
        }
        self.hold(&self.stored(name, &[shape.0, shape.1])?)
    }

    /// The same of one that is stored the other way round, (in, out); `shape` is the matrix's.
    pub(crate) fn transposed_matrix(
        &self,
        name: &str,
        shape: (usize, usize),
    ) -> Result<Matrix, WeightsError> {
        let stored = self.stored(name, &[shape.1, shape.0])?;
        self.hold(&stored.t()?.contiguous()?)
    }

    /// The tensor of this name, which must have this shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightsError> {
        self.place(&self.stored(name, shape)?)
    }

    /// On the CPU, as stored.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightsError> {
        let source = self.sources.iter().find(|source| source.contains(name));
        let source = source.ok_or_else(|| missing(name))?;
        let stored = source.read(name)?;
        check_shape(name, stored.dims(), shape)?;
        self.note_read(name, stored.elem_count() * stored.dtype().size_in_bytes());
        Ok(stored)
    }

    fn note_read(&self, name: &str, bytes: usize) {
        self.read.borrow_mut().insert(name.to_owned());
        self.progress.add(bytes as u64);
    }

    /// A stored tensor in the model's type on its device.
    fn place(&self, stored: &Tensor) -> Result<Tensor, WeightsError> {
        // Converted before it is moved: a device may lack kernels for the stored type.
        Ok(stored.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    /// A stored matrix in the model's type, packed on a CPU.
    fn hold(&self, stored: &Tensor) -> Result<Matrix, WeightsError> {
        let matrix = self.place(stored)?;
        Ok(match self.device {
            Device::Cpu => self.packed(PackedMatrix::pack_numbers(&matrix)?),
            _ => Matrix::Dense(matrix),
        })
    }

    fn packed(&self, rows: PackedMatrix) -> Matrix {
        Matrix::Packed {
            rows: Arc::new(rows),
            dtype: self.dtype,
        }
    }

    /// Ends the progress shown. Everything that the files have must have been read by then.
    pub(crate) fn finish(&self) -> Result<(), WeightsError> {
        self.progress.finish();
        let listed = self.listed();
        let read = self.read.borrow();
        let left = inventory::unread(&listed, |name| read.contains(name));
        match left.first() {
            None => Ok(()),
            Some(first) => Err(WeightsError::Unread {
                count: left.len(),
                example: (*first).to_owned(),
            }),
        }
    }

    /// Refuses what the device's memory does not hold, before any of it is read.
    pub(crate) fn check_memory(&self) -> Result<(), WeightsError> {
        let listed = self.listed();
        let bytes = |dtype| inventory::bytes(&listed, (&self.device, dtype));
        let needed_bytes = bytes(self.dtype);
        match free_bytes(&self.device)? {
            Some(available_bytes) if available_bytes < needed_bytes => {
                let half_bytes = bytes(DType::BF16);
                Err(WeightsError::TooLarge {
                    needed_bytes,
                    available_bytes,
                    half_bytes: (half_bytes < needed_bytes).then_some(half_bytes),
                })
            }
            _ => Ok(()),
        }
    }

    /// All tensors of all files.
    fn listed(&self) -> Vec<Listed> {
        self.sources.iter().flat_map(Source::listed).collect()
    }
}

impl Source {
    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Safetensors(file) => file.tensors.contains_key(name),
            Self::PyTorch(file) => file.tensors.tensor_infos().contains_key(name),
            Self::Gguf(file) => file.contains(name),
        }
    }

    /// All its tensors.
    fn listed(&self) -> Vec<Listed> {
        let plain = |name: &String, shape: &[usize]| Listed {
            name: name.clone(),
            shape: shape.to_vec(),
            quantised: None,
        };
        match self {
            Self::Safetensors(file) => {
                let tensors = file.tensors.iter();
                tensors
                    .map(|(name, info)| plain(name, &info.shape))
                    .collect()
            }
            Self::PyTorch(file) => {
                let tensors = file.tensors.tensor_infos().iter();
                let tensors = tensors.map(|(name, info)| plain(name, info.layout.dims()));
                tensors.collect()
            }
            Self::Gguf(file) => file.listed().collect(),
        }
    }

    /// On the CPU, as stored.
    fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        match self {
            Self::Safetensors(file) => file.read(name),
            Self::PyTorch(file) => file.read(name),
            Self::Gguf(file) => match file.read(name)? {
                Some(stored) => widen(&stored),
                None => Err(missing(name)),
            },
        }
    }
}

/// Longest header that is believed; the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

impl SafetensorsFile {
    fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut file = File::open(path).map_err(io_error(path))?;
        let file_bytes = file.metadata().map_err(io_error(path))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io_error(path))?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES.min(file_bytes) {
            let problem = format!("its header says it is {header_bytes} bytes long");
            return Err(format_error(path, &problem));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(io_error(path))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| format_error(path, &error))?;
        let data_start = 8 + header_bytes;
        let expected_bytes = data_start + metadata.data_len() as u64;
        if file_bytes < expected_bytes {
            let problem = format!("it has {file_bytes} of {expected_bytes} bytes");
            return Err(format_error(path, &problem));
        }
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.clone()));
        Ok(Self {
            path: path.to_owned(),
            file: RefCell::new(file),
            data_start,
            tensors: tensors.collect(),
        })
    }

    fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        let TensorInfo {
            dtype,
            shape,
            data_offsets: (start, end),
        } = &self.tensors[name];
        let dtype = DType::try_from(*dtype)?;
        let bytes = shape.iter().product::<usize>() * dtype.size_in_bytes();
        if end.checked_sub(*start) != Some(bytes) {
            let problem = format!("tensor {name} of shape {shape:?} is at bytes {start} to {end}");
            return Err(format_error(&self.path, &problem));
        }
        let mut data = vec![0; bytes];
        let mut file = self.file.borrow_mut();
        file.seek(SeekFrom::Start(self.data_start + *start as u64))
            .map_err(io_error(&self.path))?;
        file.read_exact(&mut data).map_err(io_error(&self.path))?;
        Ok(Tensor::from_raw_buffer(&data, dtype, shape, &Device::Cpu)?)
    }
}

impl PyTorchFile {
    fn open(path: &Path) -> Result<Self, WeightsError> {
        let tensors = PthTensors::new(path, None).map_err(|error| not_understood(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            tensors,
        })
    }

    fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        let info = &self.tensors.tensor_infos()[name];
        if info.layout.start_offset() > 0 {
            // candle counts the offset in bytes where PyTorch counts elements: wrong numbers.
            let problem = format!("tensor {name} starts inside another tensor's storage");
            return Err(format_error(&self.path, &problem));
        }
        let tensor = self
            .tensors
            .get(name)
            .map_err(|error| not_understood(&self.path, error))?;
        Ok(tensor.expect("the name was found").contiguous()?)
    }
}

/// A GGUF's tensor in f32, its rows as the model has them.
fn widen(stored: &Stored) -> Result<Tensor, WeightsError> {
    let dims = stored.dims.clone();
    let quantised = qtensor_from_ggml(stored.dtype, &stored.bytes, dims, &Device::Cpu)?;
    let tensor = quantised.dequantize(&Device::Cpu)?;
    if stored.order == RowOrder::Kept {
        return Ok(tensor);
    }
    let rows = tensor.dim(0)?;
    let order = (0..rows).map(|row| stored.order.stored(row) as u32);
    Ok(tensor.index_select(&Tensor::from_iter(order, &Device::Cpu)?, 0)?)
}

impl std::fmt::Debug for PyTorchFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PyTorchFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), WeightsError> {
    if found == expected {
        return Ok(());
    }
    Err(WeightsError::Shape {
        name: name.to_owned(),
        expected: expected.to_vec(),
        found: found.to_vec(),
    })
}

fn missing(name: &str) -> WeightsError {
    WeightsError::Missing {
        name: name.to_owned(),
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> WeightsError {
    move |source| WeightsError::Io {
        path: path.to_owned(),
        source,
    }
}

fn not_understood(path: &Path, error: candle_core::Error) -> WeightsError {
    format_error(path, &TensorError::from(error))
}

fn format_error(path: &Path, problem: &dyn Display) -> WeightsError {
    WeightsError::Format {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}
