//! Functions of f32 in a form that the compiler turns into vector instructions: no calls, no branches.

/// e^x to within 2 units in the last place, for results that are normal numbers; 0 below those.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding and taking away this rounds to a whole number, which lies in the lowest bits meanwhile.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has so few bits that its multiples are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    // Taylor's series, its last terms bent to fit the whole of -ln 2 / 2 to ln 2 / 2 (Cephes' expf).
    let mut series = 1.987_569_1e-4;
    for term in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_66,
        0.5,
    ] {
        series = series * rest + term;
    }
    // Not by a conversion, whose care for numbers out of range keeps this from becoming vectors.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let power = f32::from_bits(exponent.wrapping_add(127) << 23);
    (series * rest * rest + rest + 1.0) * power
}

/// x / (1 + e^-x)
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// x * Phi(x), as GPT-2 approximates it by a tanh.
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    // (1 + tanh(y)) / 2 is the sigmoid of 2y.
    let y = SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-2.0 * y))
}

/// The sum of the products of as many numbers.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_standard_library() {
        for step in -87_000..88_000 {
            let x = step as f32 / 1000.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            let apart = (ours / exact - 1.0).abs();
            assert!(apart < 2.5e-7, "e^{x}: {ours} for {exact}");
        }
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn activations_are_what_their_formulas_say() {
        for step in -800..800 {
            let x = step as f32 / 40.0;
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(silu(x)) - exact).abs() < 2e-6, "silu({x})");
            let wide = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            let exact = 0.5 * wide * (1.0 + inner.tanh());
            assert!((f64::from(gelu_tanh(x)) - exact).abs() < 2e-6, "gelu({x})");
        }
    }

    #[test]
    fn dot_takes_in_what_is_left_of_its_lanes() {
        let a: Vec<f32> = (0..37).map(|n| n as f32).collect();
        assert_eq!(dot(&a, &a), 16_206.0);
        assert_eq!(dot(&a[..7], &a[..7]), 91.0);
    }
}
