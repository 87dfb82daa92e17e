//! Tensors that a model's files have and nobody has asked for: the model would be another one without them.

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

/// The names, of all there are, that are neither `read` nor known to be of no use; in order.
pub(super) fn unread(
    all: impl Iterator<Item = String>,
    read: impl Fn(&str) -> bool,
) -> Vec<String> {
    let known = |name: &str| KNOWN.iter().any(|end| name.ends_with(end));
    let mut left: Vec<_> = all.filter(|name| !read(name) && !known(name)).collect();
    left.sort_unstable();
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_checkpoints_are_known_to_carry_is_no_part_of_the_model() {
        let left = |names: &[&str]| unread(names.iter().map(|name| (*name).to_owned()), |_| false);
        let known = [
            "lm_head.weight",
            "transformer.h.0.attn.bias",
            "h.11.attn.masked_bias",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "rope_freqs.weight",
            "decoder.version",
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
}
