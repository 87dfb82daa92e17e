//! What a recorded pass writes: buffers that stay where they are, one for each operation of a pass, shared by
//! the graphs of all batch sizes.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};

/// The outputs of a pass's operations, each (rows, width).
#[derive(Debug)]
pub(super) struct Buffers {
    /// Rows that each has.
    rows: usize,
    /// By the operation's place in the pass, and its width: what is fused differs between batch sizes.
    tensors: HashMap<(usize, usize, DType), Tensor>,
    next: usize,
}

impl Buffers {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            rows,
            tensors: HashMap::new(),
            next: 0,
        }
    }

    /// A pass begins anew.
    pub(super) fn rewind(&mut self) {
        self.next = 0;
    }

    /// The first `rows` rows of the next operation's output.
    pub(super) fn next(
        &mut self,
        (rows, width): (usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let key = (self.next, width, dtype);
        self.next += 1;
        if !self.tensors.contains_key(&key) {
            let buffer = Tensor::zeros((self.rows, width), dtype, device)?;
            self.tensors.insert(key, buffer);
        }
        self.tensors[&key].narrow(0, 0, rows)
    }
}
