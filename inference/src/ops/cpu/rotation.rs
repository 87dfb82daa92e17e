//! The angles by which heads are turned, which all layers of a step share.

use std::sync::Arc;

use crate::ops::{Rope, StepInputs};

/// An angle as what it does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Angle {
    pub(super) cos: f32,
    pub(super) sin: f32,
}

/// The angles of the rows at some positions, as far as they have been asked for.
#[derive(Debug, Default)]
pub(super) struct Rotations {
    /// (T)
    positions: Vec<u32>,
    /// (T, D / 2) for each rotation of the model: there are two at most.
    angles: Vec<(Arc<Rope>, Arc<[Angle]>)>,
}

impl Rotations {
    /// Each row's angles, computed where the rows before were at other positions: (T, D / 2).
    pub(super) fn of(&mut self, rope: &Arc<Rope>, step: &StepInputs) -> Arc<[Angle]> {
        if self.positions != step.positions {
            self.positions.clone_from(&step.positions);
            self.angles.clear();
        }
        let known = self
            .angles
            .iter()
            .find(|(known, _)| Arc::ptr_eq(known, rope));
        if let Some((_, angles)) = known {
            return Arc::clone(angles);
        }
        let angles = angles(rope, &step.positions);
        self.angles.push((Arc::clone(rope), Arc::clone(&angles)));
        angles
    }
}

fn angles(rope: &Rope, positions: &[u32]) -> Arc<[Angle]> {
    let row = |position: &u32| {
        let position = *position as f32;
        let frequencies = rope.frequencies.iter();
        frequencies.map(move |frequency| {
            let (sin, cos) = (position * frequency).sin_cos();
            Angle { cos, sin }
        })
    };
    positions.iter().flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    fn rope(frequencies: &[f32]) -> Arc<Rope> {
        Arc::new(Rope {
            on_device: Tensor::from_slice(frequencies, frequencies.len(), &Device::Cpu)
                .expect("it is as long as it says"),
            frequencies: frequencies.to_vec(),
        })
    }

    fn step(positions: &[u32]) -> StepInputs {
        StepInputs {
            positions: positions.to_vec(),
            ..StepInputs::default()
        }
    }

    #[test]
    fn angles_are_computed_once_for_each_rotation_and_anew_at_other_positions() {
        let (slow, fast) = (rope(&[0.5]), rope(&[2.0]));
        let mut rotations = Rotations::default();
        let first = rotations.of(&slow, &step(&[0, 3]));
        assert_eq!(first[0], Angle { cos: 1.0, sin: 0.0 });
        assert_eq!((first.len(), first[1].sin), (2, 1.5_f32.sin()));
        let other = rotations.of(&fast, &step(&[0, 3]));
        assert_eq!(other[1].cos, 6.0_f32.cos());
        assert!(Arc::ptr_eq(&first, &rotations.of(&slow, &step(&[0, 3]))));
        assert!(Arc::ptr_eq(&other, &rotations.of(&fast, &step(&[0, 3]))));
        let moved = rotations.of(&slow, &step(&[1, 4]));
        assert_eq!(moved[1].sin, 2.0_f32.sin());
        assert_eq!(rotations.angles.len(), 1, "none is kept for long");
    }
}
