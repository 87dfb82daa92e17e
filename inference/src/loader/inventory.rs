//! What the headers of a model's files list: the memory that the tensors will take, and those that nobody has asked
//! for, without which the model would be another one.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};

use crate::ops::is_packable;

/// A tensor as a header lists it.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// Its type in a GGUF.
    pub(super) quantised: Option<GgmlDType>,
}

impl Listed {
    /// Bytes that it takes once it is loaded: on a CPU, matrices that can be packed take what they take in the file.
    fn bytes(&self, (device, dtype): (&Device, DType)) -> u64 {
        let numbers = self.shape.iter();
        let numbers = numbers.fold(1, |count: u64, dim| count.saturating_mul(*dim as u64));
        let packed = self.quantised.filter(|quantised| {
            device.is_cpu() && self.shape.len() == 2 && is_packable(*quantised)
        });
        match packed {
            Some(packed) => {
                let blocks = numbers / packed.block_size() as u64;
                blocks.saturating_mul(packed.type_size() as u64)
            }
            None => numbers.saturating_mul(dtype.size_in_bytes() as u64),
        }
    }

    fn is_known_to_be_of_no_use(&self) -> bool {
        let part = self.name.strip_prefix("model.").unwrap_or(&self.name);
        KNOWN.iter().any(|end| self.name.ends_with(end))
            || IMAGES.iter().any(|begin| part.starts_with(begin))
    }
}

/// Bytes that all of them take.
pub(super) fn bytes(listed: &[Listed], place: (&Device, DType)) -> u64 {
    let used = listed.iter().filter(|it| !it.is_known_to_be_of_no_use());
    used.fold(0, |sum: u64, it| sum.saturating_add(it.bytes(place)))
}

/// What checkpoints have beside what is computed with, by how the names end.
const KNOWN: [&str; 6] = [
    // Where the embedding is the head, some files have it twice: Qwen 3's small ones, OPT's.
    "lm_head.weight",
    // GPT-2's causal mask, and what was put in its place.
    ".attn.bias",
    ".attn.masked_bias",
    // Llama's frequencies, which config.json has too.
    "rotary_emb.inv_freq",
    // Those of Llama 3.1 in a GGUF: they become part of the config.
    "rope_freqs.weight",
    // fairseq's mark on OPT.
    "decoder.version",
];

/// What models have that see images, too, of which only text is served; by how the names begin, behind `model.` or not.
const IMAGES: [&str; 2] = ["vision_tower.", "multi_modal_projector."];

/// The names that are neither `read` nor known to be of no use; in order.
pub(super) fn unread(listed: &[Listed], read: impl Fn(&str) -> bool) -> Vec<&str> {
    let left = listed
        .iter()
        .filter(|it| !read(&it.name) && !it.is_known_to_be_of_no_use());
    let mut names: Vec<_> = left.map(|it| it.name.as_str()).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_checkpoints_are_known_to_carry_is_no_part_of_the_model() {
        let listed = |name: &str| Listed {
            name: name.to_owned(),
            shape: Vec::new(),
            quantised: None,
        };
        let left = |names: &[&str]| -> Vec<String> {
            let all: Vec<_> = names.iter().map(|name| listed(name)).collect();
            let left = unread(&all, |_| false);
            left.into_iter().map(str::to_owned).collect()
        };
        let known = [
            "lm_head.weight",
            "transformer.h.0.attn.bias",
            "h.11.attn.masked_bias",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "rope_freqs.weight",
            "decoder.version",
            "vision_tower.vision_model.embeddings.patch_embedding.bias",
            "model.multi_modal_projector.mm_input_projection_weight",
        ];
        assert!(left(&known).is_empty());
        for name in [
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.0.self_attn.q_norm.weight",
            "transformer.h.0.attn.c_attn.bias",
            "lm_head.bias",
        ] {
            assert_eq!(left(&[name]), [name]);
        }
    }

    #[test]
    fn packed_matrices_take_what_they_take_in_the_file_and_all_else_its_type() {
        let listed = |name: &str, shape: &[usize], quantised| Listed {
            name: name.to_owned(),
            shape: shape.to_vec(),
            quantised,
        };
        let tensors = [
            listed("matrix", &[8, 256], Some(GgmlDType::Q4K)), // 144 bytes for 256 numbers
            listed("norm", &[256], Some(GgmlDType::F32)),
            listed("lm_head.weight", &[8, 256], None),
        ];
        let on_cpu = |dtype| bytes(&tensors, (&Device::Cpu, dtype));
        assert_eq!(on_cpu(DType::F32), 8 * 144 + 256 * 4);
        assert_eq!(on_cpu(DType::BF16), 8 * 144 + 256 * 2);
        let endless = [listed("endless", &[usize::MAX, usize::MAX], None)];
        assert_eq!(bytes(&endless, (&Device::Cpu, DType::F32)), u64::MAX);
    }
}
