"""Random-weight OPT models in each shape and file layout the engine reads, with what they compute."""

import json
import shutil
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from cases import CONTEXT_TOKENS, VOCABULARY, write_cases
from transformers import OPTConfig, OPTForCausalLM

# Standard deviations: large, so that every bias and norm is visible in the logits.
EMBEDDING_STD = 0.5
POSITION_STD = 1.0
WEIGHT_STD = 0.2
BIAS_STD = 0.1
# Fields that configurations of 2022 do not have yet, as those of facebook/opt-*.
LATER_FIELDS = ("dtype", "enable_bias", "layer_norm_elementwise_affine", "tie_word_embeddings")


class Layout(Enum):
    """How a model's weights lie on disk."""

    SAFETENSORS = "one model.safetensors"
    SHARDS = "sharded safetensors with an index"
    PICKLE_BASE = "pytorch_model.bin named from `decoder.`, as the base model saves it"
    PICKLE_HEAD = "pytorch_model.bin named from `model.decoder.`, with the tied head stored a second time"


@dataclass(frozen=True)
class Shape:
    """One model to make."""

    name: str
    seed: int
    layout: Layout = Layout.SAFETENSORS
    dtype: torch.dtype = torch.float32
    config: dict[str, Any] = field(default_factory=dict)


SHAPES = (
    Shape("opt-pre-ln", seed=1, config={"hidden_size": 48, "ffn_dim": 192, "num_attention_heads": 4}),
    Shape(
        "opt-350m-like",
        seed=2,
        layout=Layout.PICKLE_BASE,
        config={
            "hidden_size": 48,
            "ffn_dim": 192,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 24,
            "do_layer_norm_before": False,
        },
    ),
    Shape(
        "opt-untied",
        seed=3,
        layout=Layout.SHARDS,
        config={
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_attention_heads": 8,
            "num_hidden_layers": 2,
            "tie_word_embeddings": False,
        },
    ),
    Shape(
        "opt-gelu-no-final-ln",
        seed=4,
        config={
            "hidden_size": 40,
            "ffn_dim": 104,
            "num_attention_heads": 5,
            "num_hidden_layers": 2,
            "activation_function": "gelu",
            "_remove_final_layer_norm": True,
        },
    ),
    Shape(
        "opt-no-bias",
        seed=5,
        config={
            "hidden_size": 32,
            "ffn_dim": 128,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
        },
    ),
    Shape(
        "opt-half",
        seed=6,
        layout=Layout.PICKLE_HEAD,
        dtype=torch.float16,
        config={"hidden_size": 48, "ffn_dim": 192, "num_attention_heads": 4, "num_hidden_layers": 2},
    ),
)


def make(folder: Path) -> None:
    """Makes every shape in a folder of its name below `folder`."""
    for shape in SHAPES:
        target = folder / shape.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        store(random_model(shape), shape, target)
        # Read back what was stored: the goldens then hold for the files, and transformers can read them.
        model = OPTForCausalLM.from_pretrained(target, dtype=torch.float32, attn_implementation="eager").eval()
        for path in target.iterdir():
            path.chmod(0o644)
        write_cases(model, shape.seed, target)


def random_model(shape: Shape) -> OPTForCausalLM:
    """A model of this shape with random weights, biases and norms."""
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT_TOKENS, "num_hidden_layers": 3}
    model = OPTForCausalLM(OPTConfig(**common | shape.config))
    generator = torch.Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("layer_norm.weight"):
                values = 1.0 + WEIGHT_STD * values
            elif name.endswith("bias"):
                values *= BIAS_STD
            elif "embed_positions" in name:
                values *= POSITION_STD
            elif "embed_tokens" in name or "lm_head" in name:
                values *= EMBEDDING_STD
            else:
                values *= WEIGHT_STD
            parameter.copy_(values)
    return model.to(shape.dtype)


def store(model: OPTForCausalLM, shape: Shape, target: Path) -> None:
    """Writes the model into `target` in the shape's layout."""
    if shape.layout is Layout.SAFETENSORS:
        model.save_pretrained(target)
    elif shape.layout is Layout.SHARDS:
        model.save_pretrained(target, max_shard_size="170KB")
    else:
        base_only = shape.layout is Layout.PICKLE_BASE
        # state_dict() of a module carries `_metadata`, which the hub's pickles therefore have too.
        state: OrderedDict[str, torch.Tensor] = (model.model if base_only else model).state_dict()
        torch.save(state, target / "pytorch_model.bin")
        write_config_of_2022(model.config, shape.dtype, target / "config.json")


def write_config_of_2022(config: OPTConfig, dtype: torch.dtype, path: Path) -> None:
    """Writes config.json as transformers did when OPT was published: `torch_dtype`, and no later field."""
    fields = {key: value for key, value in json.loads(config.to_json_string()).items() if key not in LATER_FIELDS}
    fields |= {"architectures": ["OPTForCausalLM"], "prefix": "</s>", "torch_dtype": str(dtype).removeprefix("torch.")}
    path.write_text(json.dumps(dict(sorted(fields.items())), indent=2) + "\n", encoding="utf-8")
