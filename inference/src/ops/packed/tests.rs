//! Products of packed matrices against candle's own reading of the same blocks.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

use super::*;

const TYPES: [GgmlDType; 8] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// Pseudo-random numbers from -1 to 1.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn quantised(dtype: GgmlDType, (rows, columns): (usize, usize), seed: u32) -> QTensor {
    let weights = Tensor::from_vec(numbers(rows * columns, seed), (rows, columns), &Device::Cpu);
    QTensor::quantize(&weights.unwrap(), dtype).unwrap()
}

fn packed(tensor: &QTensor) -> PackedMatrix {
    let bytes = tensor.data().unwrap();
    let stored = StoredRows {
        dtype: tensor.dtype(),
        bytes: &bytes,
        shape: tensor.shape().dims2().unwrap(),
    };
    PackedMatrix::pack(stored, |row| row).unwrap()
}

fn widened(tensor: &QTensor) -> Vec<Vec<f32>> {
    let dense = tensor.dequantize(&Device::Cpu).unwrap();
    dense.to_vec2().unwrap()
}

/// Largest distance of the numbers, in parts of the largest number.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let most = |numbers: &mut dyn Iterator<Item = f32>| numbers.fold(0f32, f32::max);
    let apart = most(&mut found.iter().zip(expected).map(|(a, b)| (a - b).abs()));
    apart / most(&mut expected.iter().map(|number| number.abs()))
}

/// Numbers as they are stored, and as f32.
fn stored_as(dtype: DType, shape: (usize, usize), seed: u32) -> (Tensor, Tensor) {
    let numbers = Tensor::from_vec(numbers(shape.0 * shape.1, seed), shape, &Device::Cpu).unwrap();
    let stored = numbers.to_dtype(dtype).unwrap();
    let wide = stored.to_dtype(DType::F32).unwrap();
    (stored, wide)
}

#[test]
fn numbers_are_read_back_and_multiplied_as_they_are_stored() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        // More than a block of columns and not whole blocks; the last panel is not full.
        for (rows, columns) in [(37, 600), (1, 1), (70, 256), (16, 7)] {
            let (stored, wide) = stored_as(dtype, (rows, columns), 13);
            let packed = PackedMatrix::pack_numbers(&stored).unwrap();
            assert_eq!((packed.rows(), packed.columns()), (rows, columns));
            let all: Vec<f32> = wide.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(packed.read_rows(0..rows as u32), all);
            for count in [1, 2, 3, 7, 8, 9, 19] {
                let x = numbers(count * columns, 14);
                let rows_of_x = Tensor::from_slice(&x, (count, columns), &Device::Cpu).unwrap();
                let expected = rows_of_x.matmul(&wide.t().unwrap()).unwrap();
                let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
                for kernel in Kernel::available() {
                    let found = packed.product_by(kernel, &x);
                    let off = distance(&found, &expected);
                    assert!(
                        off < 1e-5,
                        "{dtype:?}, {rows} x {columns}, {count} rows, {kernel:?}: {off}"
                    );
                }
            }
        }
    }
}

#[test]
fn halves_that_are_not_numbers_or_very_small_are_widened_as_they_are() {
    let odd = [
        f32::INFINITY,
        f32::NEG_INFINITY,
        6e-8,
        -6e-8,
        3e-5,
        0.0,
        65504.0,
    ];
    let tensor = Tensor::from_slice(&odd, (odd.len(), 1), &Device::Cpu).unwrap();
    for dtype in [DType::F16, DType::BF16] {
        let stored = tensor.to_dtype(dtype).unwrap();
        let wide = stored.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        let wide: Vec<f32> = wide.to_vec1().unwrap();
        let packed = PackedMatrix::pack_numbers(&stored).unwrap();
        for kernel in Kernel::available() {
            assert_eq!(
                packed.product_by(kernel, &[1.0]),
                wide,
                "{dtype:?} {kernel:?}"
            );
        }
    }
}

#[test]
fn rows_read_back_are_what_candle_reads() {
    for dtype in TYPES {
        let tensor = quantised(dtype, (21, 512), 1);
        let packed = packed(&tensor);
        for (row, expected) in widened(&tensor).iter().enumerate() {
            let found = packed.read_rows([row as u32]);
            // Scales and minima of the K types are products that are rounded to 16 bits here.
            assert!(distance(&found, expected) < 2e-3, "{dtype:?} row {row}");
        }
    }
}

#[test]
fn every_kernel_gives_the_products_of_every_type() {
    for dtype in TYPES {
        let tensor = quantised(dtype, (37, 512), 2);
        let packed = packed(&tensor);
        let weights = widened(&tensor);
        for rows in [1, 2, 3, 7, 16, 19, 33] {
            let x = numbers(rows * 512, 3);
            let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
            let expected: Vec<f32> = x
                .chunks_exact(512)
                .flat_map(|x| weights.iter().map(move |w| dot(x, w)))
                .collect();
            let portable = packed.product_by(Kernel::Portable, &x);
            let off = distance(&portable, &expected);
            assert!(off < 0.01, "{dtype:?}, {rows} rows: {off}");
            for kernel in Kernel::available() {
                let found = packed.product_by(kernel, &x);
                let off = distance(&found, &portable);
                assert!(off < 1e-5, "{dtype:?}, {rows} rows, {kernel:?}: {off}");
            }
        }
    }
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    // Codes at both ends, with activations at both ends: the most that 16 bits must hold.
    for dtype in TYPES {
        for sign in [1.0, -1.0] {
            let row: Vec<f32> = (0..256)
                .map(|at| if at == 0 { -sign } else { sign })
                .collect();
            let weights = Tensor::from_vec(row.clone(), (1, 256), &Device::Cpu).unwrap();
            let tensor = QTensor::quantize(&weights, dtype).unwrap();
            let packed = packed(&tensor);
            let expected: f32 = widened(&tensor)[0]
                .iter()
                .zip(&row)
                .map(|(w, x)| w * x)
                .sum();
            for kernel in Kernel::available() {
                let found = packed.product_by(kernel, &row);
                assert!(
                    distance(&found, &[expected]) < 1e-3,
                    "{dtype:?} {kernel:?}: {found:?}"
                );
            }
        }
    }
}

#[test]
fn a_row_that_is_not_numbers_gives_none_and_spares_its_neighbours() {
    for dtype in TYPES {
        let packed = packed(&quantised(dtype, (37, 512), 11));
        let mut x = numbers(3 * 512, 12);
        let alone = packed.product(&x);
        x[512 + 300] = f32::NAN;
        for kernel in Kernel::available() {
            let found = packed.product_by(kernel, &x);
            let rows: Vec<_> = found.chunks_exact(37).collect();
            assert!(
                rows[1].iter().all(|number| number.is_nan()),
                "{dtype:?} {kernel:?}"
            );
            assert!(
                distance(rows[0], &alone[..37]) < 1e-5,
                "{dtype:?} {kernel:?}"
            );
            assert!(
                distance(rows[2], &alone[74..]) < 1e-5,
                "{dtype:?} {kernel:?}"
            );
        }
    }
}

#[test]
fn parts_of_other_types_stand_one_below_the_other() {
    let first = quantised(GgmlDType::Q5_0, (40, 256), 4);
    let second = quantised(GgmlDType::Q8_0, (9, 256), 5);
    let x = numbers(3 * 256, 6);
    let alone = [packed(&first).product(&x), packed(&second).product(&x)];
    let both = PackedMatrix::stack([packed(&first), packed(&second)].iter()).unwrap();
    assert_eq!((both.rows(), both.columns()), (49, 256));
    for (row, both) in both.product(&x).chunks_exact(49).enumerate() {
        assert_eq!(both[..40], alone[0][row * 40..][..40]);
        assert_eq!(both[40..], alone[1][row * 9..][..9]);
    }
    assert_eq!(
        both.read_rows([43, 1])[..256],
        packed(&second).read_rows([3])
    );

    let third = PackedMatrix::pack_numbers(&stored_as(DType::BF16, (20, 256), 15).0).unwrap();
    let all = PackedMatrix::stack([both, third.clone()].iter()).unwrap();
    for (row, all) in all.product(&x).chunks_exact(69).enumerate() {
        assert_eq!(all[..40], alone[0][row * 40..][..40]);
        assert_eq!(all[49..], third.product(&x)[row * 20..][..20]);
    }

    let narrow = packed(&quantised(GgmlDType::Q8_0, (9, 128), 7));
    assert!(PackedMatrix::stack([all, narrow].iter()).is_err());
}

#[test]
fn stored_rows_may_be_taken_in_another_order() {
    let tensor = quantised(GgmlDType::Q4K, (20, 256), 8);
    let bytes = tensor.data().unwrap();
    let stored = StoredRows {
        dtype: GgmlDType::Q4K,
        bytes: &bytes,
        shape: (20, 256),
    };
    let reversed = PackedMatrix::pack(stored, |row| 19 - row).unwrap();
    assert_eq!(reversed.read_rows([2]), packed(&tensor).read_rows([17]));
}

#[test]
fn bytes_that_are_not_the_rows_are_refused() {
    let stored = StoredRows {
        dtype: GgmlDType::Q8_0,
        bytes: &[0; 33],
        shape: (1, 32),
    };
    let refused = PackedMatrix::pack(stored, |row| row).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("1 rows of 32 Q8_0 are not 33 bytes")
    );
}

proptest! {
    #[test]
    fn products_of_any_size_are_those_of_the_portable_kernel(
        rows in 1usize..70,
        blocks in 1usize..5,
        count in 1usize..20,
        which in 0..TYPES.len(),
    ) {
        let dtype = TYPES[which];
        let columns = blocks * dtype.block_size().max(32);
        let packed = packed(&quantised(dtype, (rows, columns), 9));
        let x = numbers(count * columns, 10);
        let expected = packed.product_by(Kernel::Portable, &x);
        for kernel in Kernel::available() {
            prop_assert!(distance(&packed.product_by(kernel, &x), &expected) < 1e-4);
        }
    }
}
