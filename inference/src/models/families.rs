//! The table of model families: config.json names one, and its entry reads the rest of the file.

use serde::Deserialize;
use serde_json::Value;

use super::CausalLm;
use super::config::{ConfigError, TokenIds, fields, unsupported};
use super::gemma3_config::Gemma3Config;
use super::gpt2::Gpt2Config;
use super::layers::Loaded;
use super::llama_config::{self, LlamaConfig};
use super::opt_config::OptConfig;
use crate::loader::weights::Weights;

/// One kind of config.json.
struct Family {
    /// Its `model_type`.
    model_type: &'static str,
    /// The name in `architectures`, for files without a `model_type`.
    architecture: &'static str,
    /// What transformers takes for `eos_token_id` where config.json has none.
    eos_token_id: Option<u32>,
    /// Reads the family's own fields.
    read: fn(&Value) -> Result<Box<dyn Blueprint>, ConfigError>,
}

/// All that can be run.
const FAMILIES: [Family; 7] = [
    Family {
        model_type: "gemma3",
        architecture: "Gemma3ForConditionalGeneration",
        eos_token_id: Some(1),
        read: |json| boxed(Gemma3Config::read_text_half(json)),
    },
    Family {
        model_type: "gemma3_text",
        architecture: "Gemma3ForCausalLM",
        eos_token_id: Some(1),
        read: |json| boxed(Gemma3Config::read(json)),
    },
    Family {
        model_type: "gpt2",
        architecture: "GPT2LMHeadModel",
        eos_token_id: Some(50256),
        read: |json| boxed(Gpt2Config::read(json)),
    },
    Family {
        model_type: "llama",
        architecture: "LlamaForCausalLM",
        eos_token_id: Some(2),
        read: |json| boxed(LlamaConfig::read(json, llama_config::LLAMA)),
    },
    Family {
        model_type: "opt",
        architecture: "OPTForCausalLM",
        eos_token_id: Some(2),
        read: |json| boxed(OptConfig::read(json)),
    },
    Family {
        model_type: "qwen2",
        architecture: "Qwen2ForCausalLM",
        eos_token_id: None,
        read: |json| boxed(LlamaConfig::read(json, llama_config::QWEN2)),
    },
    Family {
        model_type: "qwen3",
        architecture: "Qwen3ForCausalLM",
        eos_token_id: None,
        read: |json| boxed(LlamaConfig::read(json, llama_config::QWEN3)),
    },
];

fn boxed(
    config: Result<impl Blueprint + 'static, ConfigError>,
) -> Result<Box<dyn Blueprint>, ConfigError> {
    Ok(Box::new(config?))
}

/// What a family makes of its config.json: enough to load the weights.
pub(super) trait Blueprint {
    /// V.
    fn vocab_size(&self) -> usize;

    /// Longest sequence, in tokens.
    fn context_tokens(&self) -> usize;

    /// Takes the model's tensors out of `weights`.
    fn load(&self, weights: &Weights) -> Loaded<Box<dyn CausalLm>>;
}

/// A config.json that can be run.
pub struct ModelConfig {
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
    /// `torch_dtype`, as stored, such as `float16`.
    pub stored_dtype: Option<String>,
    blueprint: Box<dyn Blueprint>,
}

/// The fields that all families have. Those that only matter in training are not read.
#[derive(Debug, Deserialize)]
struct CommonFields {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    torch_dtype: Option<String>,
    /// What transformers 5 calls `torch_dtype`.
    dtype: Option<String>,
    quantization_config: Option<Value>,
}

impl ModelConfig {
    /// Reads a config.json; refuses by name what is not done here.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        Self::from_value(&serde_json::from_str(json)?)
    }

    /// The same of one that is parsed already.
    pub fn from_value(json: &Value) -> Result<Self, ConfigError> {
        let common: CommonFields = fields(json)?;
        let family = common.family()?;
        if let Some(quantization) = &common.quantization_config {
            let value = quantization.get("quant_method").unwrap_or(quantization);
            let supported = "only unquantized weights are";
            return Err(unsupported("quantization_config", &value, supported));
        }
        // A field that says null means none, and only one that is not there the default.
        let eos_token_ids = match json.get("eos_token_id") {
            Some(ids) => fields::<Option<TokenIds>>(ids)?
                .map(TokenIds::into_vec)
                .unwrap_or_default(),
            None => family.eos_token_id.into_iter().collect(),
        };
        Ok(Self {
            eos_token_ids,
            stored_dtype: common.torch_dtype.or(common.dtype),
            blueprint: (family.read)(json)?,
        })
    }

    /// Token ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.blueprint.vocab_size()
    }

    /// Longest sequence, in tokens.
    pub fn context_tokens(&self) -> usize {
        self.blueprint.context_tokens()
    }

    /// Takes the model's tensors out of `weights`.
    pub fn load(&self, weights: &Weights) -> Loaded<Box<dyn CausalLm>> {
        self.blueprint.load(weights)
    }
}

impl CommonFields {
    /// By `model_type`; only files older than that field are told by their first architecture.
    fn family(&self) -> Result<&'static Family, ConfigError> {
        let architecture = self.architectures.as_deref().and_then(<[_]>::first);
        let (name, found) = match (&self.model_type, architecture) {
            (Some(name), _) => (name.as_str(), find(|family| family.model_type == name)),
            (None, Some(name)) => (name.as_str(), find(|family| family.architecture == name)),
            (None, None) => ("(config.json names none)", None),
        };
        found.ok_or_else(|| ConfigError::Architecture {
            name: name.to_owned(),
            supported: known(),
        })
    }
}

fn find(is_it: impl Fn(&Family) -> bool) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| is_it(family))
}

/// The names of all families, as a sentence has them.
fn known() -> String {
    let names: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
    match names.split_last() {
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> String {
        let refused = ModelConfig::from_json(json).err().expect("refused");
        refused.to_string()
    }

    #[test]
    fn an_unknown_family_is_refused_by_name_beside_those_that_are_known() {
        let known = "gemma3, gemma3_text, gpt2, llama, opt, qwen2 and qwen3 are";
        for (json, name) in [
            (r#"{"model_type": "mamba"}"#, "mamba"),
            (r#"{"model_type": "qwen3_moe"}"#, "qwen3_moe"),
            (
                r#"{"architectures": ["MixtralForCausalLM"]}"#,
                "MixtralForCausalLM",
            ),
            ("{}", "(config.json names none)"),
        ] {
            let expected = format!("architecture {name} is not supported: {known}");
            assert_eq!(refusal(json), expected);
        }
    }

    #[test]
    fn every_family_goes_by_both_its_names() {
        for family in &FAMILIES {
            let (model_type, class) = (family.model_type, family.architecture);
            for json in [
                serde_json::json!({"model_type": model_type, "architectures": ["Other"]}),
                serde_json::json!({"architectures": [class]}),
            ] {
                let common: CommonFields = fields(&json).unwrap();
                assert_eq!(common.family().unwrap().model_type, model_type);
            }
        }
    }

    #[test]
    fn quantized_weights_are_refused_whatever_the_family() {
        let json = r#"{"model_type": "opt", "quantization_config": {"quant_method": "gptq"}}"#;
        assert!(refusal(json).contains("quantization_config = \"gptq\""));
    }

    #[test]
    fn end_of_sequence_tokens_are_one_or_several_or_none_or_the_familys() {
        let eos = |field: &str| {
            let json = format!(r#"{{"model_type": "opt"{field}}}"#);
            ModelConfig::from_json(&json).unwrap().eos_token_ids
        };
        assert_eq!(eos(r#", "eos_token_id": 7"#), [7]);
        assert_eq!(eos(r#", "eos_token_id": [2, 7]"#), [2, 7]);
        assert!(eos(r#", "eos_token_id": null"#).is_empty());
        assert_eq!(eos(""), [2]);
    }
}
