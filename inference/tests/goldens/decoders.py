"""Random-weight models of the families other than OPT, with what they compute."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cases import CONTEXT_TOKENS, VOCABULARY, write_cases
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

# Standard deviations: large, so that every bias and norm is visible in the logits.
EMBEDDING_STD = 0.5
POSITION_STD = 1.0
WEIGHT_STD = 0.2
BIAS_STD = 0.2


@dataclass(frozen=True)
class Shape:
    """One model to make."""

    name: str
    seed: int
    model_type: str
    dtype: torch.dtype = torch.float32
    # Saved from the model below the head, as the hub has GPT-2: names without `transformer.`.
    base_only: bool = False
    embedding_std: float = EMBEDDING_STD
    config: dict[str, Any] = field(default_factory=dict)


# What all but GPT-2 share.
SMALL = {"max_position_embeddings": CONTEXT_TOKENS, "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 80}

SHAPES = (
    # Wave lengths from 6 to 81,000 tokens: below, between and above the bounds of 8 and 32.
    Shape(
        "llama3",
        seed=1,
        model_type="llama",
        dtype=torch.bfloat16,
        config=SMALL
        | {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 50_000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    Shape(
        "llama2",
        seed=2,
        model_type="llama",
        config=SMALL | {"hidden_size": 40, "intermediate_size": 64, "num_attention_heads": 4},
    ),
    Shape(
        "llama-linear-bias",
        seed=3,
        model_type="llama",
        dtype=torch.float16,
        config=SMALL
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
        },
    ),
    Shape(
        "qwen2",
        seed=4,
        model_type="qwen2",
        dtype=torch.bfloat16,
        config=SMALL | {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    Shape(
        "qwen3",
        seed=5,
        model_type="qwen3",
        config=SMALL
        | {
            "hidden_size": 40,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
    ),
    # Windows of 10 tokens in two of three layers, two bases, scaling of one, a scale that is not the head's.
    Shape(
        "gemma3",
        seed=7,
        model_type="gemma3_text",
        # They are multiplied by 7 and must not drown what the layers add, or every token repeats itself.
        embedding_std=0.1,
        config=SMALL
        | {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 10,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 50_000.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
    Shape(
        "gpt2",
        seed=6,
        model_type="gpt2",
        base_only=True,
        config={"n_positions": CONTEXT_TOKENS, "n_embd": 36, "n_layer": 2, "n_head": 4},
    ),
)


def make(folder: Path) -> None:
    """Makes every shape in a folder of its name below `folder`."""
    for shape in SHAPES:
        target = folder / shape.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        stored = random_model(shape)
        (stored.base_model if shape.base_only else stored).save_pretrained(target)
        # Read back what was stored: the goldens then hold for the files, and transformers can read them.
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, attn_implementation="eager").eval()
        for path in target.iterdir():
            path.chmod(0o644)
        write_cases(model, shape.seed, target)


def random_model(shape: Shape) -> PreTrainedModel:
    """A model of this shape with random weights, biases and norms."""
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 2, "eos_token_id": 2}
    config = AutoConfig.for_model(shape.model_type, **tokens | shape.config)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if is_norm_weight(name):
                values = 1.0 + WEIGHT_STD * values
            elif name.endswith("bias"):
                values *= BIAS_STD
            elif "wpe" in name:
                values *= POSITION_STD
            elif "embed_tokens" in name or "wte" in name or "lm_head" in name:
                values *= shape.embedding_std
            else:
                values *= WEIGHT_STD
            parameter.copy_(values)
    return model.to(shape.dtype)


def is_norm_weight(name: str) -> bool:
    """True for `model.norm.weight`, `…layernorm.weight`, `…q_norm.weight`, `…ln_1.weight`."""
    layer, _, parameter = name.rpartition(".")
    return parameter == "weight" and ("norm" in layer.rpartition(".")[2] or ".ln_" in layer)
