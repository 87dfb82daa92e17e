//! Rotary embedding as config.json describes it, in either spelling: `rope_theta` beside
//! `rope_scaling`, or all of it in `rope_parameters` since transformers 5.

use serde::Deserialize;
use serde_json::Value;

use super::config::{ConfigError, fields as read_fields, unsupported};
use super::layers::{Rope, RopeScaling};

/// transformers' base where config.json has none.
const DEFAULT_BASE: f64 = 10_000.0;

/// Where in config.json it is.
#[derive(Debug, Deserialize)]
struct Fields {
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
}

/// What is in `rope_scaling` or `rope_parameters`.
#[derive(Debug, Default, Deserialize)]
struct Parameters {
    rope_type: Option<String>,
    /// What `rope_type` was called at first.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// Reads the rotation of a model with this much context.
pub(super) fn read(json: &Value, context_tokens: usize) -> Result<Rope, ConfigError> {
    let fields: Fields = read_fields(json)?;
    let described = fields.rope_scaling.or(fields.rope_parameters);
    let parameters = match &described {
        Some(described) => {
            check_flat(described)?;
            read_fields(described)?
        }
        None => Parameters::default(),
    };
    let partial = parameters
        .partial_rotary_factor
        .or(fields.partial_rotary_factor);
    if let Some(part) = partial.filter(|part| *part != 1.0) {
        return Err(unsupported("partial_rotary_factor", &part, "1 is"));
    }
    let base = parameters.rope_theta.or(fields.rope_theta);
    let base = positive("rope_theta", base.unwrap_or(DEFAULT_BASE))?;
    let scaling = parameters.scaling(context_tokens)?;
    Ok(Rope { base, scaling })
}

/// Refuses parameters of their own for some of the layers.
fn check_flat(described: &Value) -> Result<(), ConfigError> {
    let mut nested = described.as_object().into_iter().flatten();
    match nested.find(|(_, value)| value.is_object()) {
        Some((layers, _)) => {
            let supported = "only the same for all layers is";
            Err(unsupported("rope_parameters", &layers, supported))
        }
        None => Ok(()),
    }
}

impl Parameters {
    fn scaling(&self, context_tokens: usize) -> Result<RopeScaling, ConfigError> {
        let kind = self.rope_type.as_deref().or(self.old_type.as_deref());
        match kind.unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: needed("factor", self.factor)?,
            }),
            "llama3" => self.llama3(context_tokens),
            other => {
                let supported = "default, linear and llama3 are";
                Err(unsupported("rope_type", &other, supported))
            }
        }
    }

    fn llama3(&self, context_tokens: usize) -> Result<RopeScaling, ConfigError> {
        let low_freq_factor = needed("low_freq_factor", self.low_freq_factor)?;
        let high_freq_factor = needed("high_freq_factor", self.high_freq_factor)?;
        if high_freq_factor <= low_freq_factor {
            let supported = format!("more than low_freq_factor, {low_freq_factor}, is");
            return Err(unsupported(
                "high_freq_factor",
                &high_freq_factor,
                supported,
            ));
        }
        let original = self.original_max_position_embeddings;
        Ok(RopeScaling::Llama3 {
            factor: needed("factor", self.factor)?,
            low_freq_factor,
            high_freq_factor,
            original_context: positive(
                "original_max_position_embeddings",
                original.unwrap_or(context_tokens as f64),
            )?,
        })
    }
}

fn needed(field: &'static str, value: Option<f64>) -> Result<f64, ConfigError> {
    match value {
        Some(value) => positive(field, value),
        None => Err(unsupported(field, &"null", "a number above 0 is")),
    }
}

fn positive(field: &'static str, value: f64) -> Result<f64, ConfigError> {
    if value > 0.0 {
        return Ok(value);
    }
    Err(unsupported(field, &value, "a number above 0 is"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CONTEXT_TOKENS: usize = 128;

    fn rope(json: &Value) -> Rope {
        read(json, CONTEXT_TOKENS).unwrap()
    }

    #[test]
    fn both_spellings_mean_the_same() {
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        let old = rope(&json!({"rope_theta": 500_000.0, "rope_scaling": llama3}));
        let mut parameters = llama3;
        parameters["rope_theta"] = json!(500_000.0);
        assert_eq!(old, rope(&json!({"rope_parameters": parameters})));
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        assert_eq!(
            old,
            Rope {
                base: 500_000.0,
                scaling
            }
        );

        let linear = rope(&json!({"rope_scaling": {"type": "linear", "factor": 2.0}}));
        let scaling = RopeScaling::Linear { factor: 2.0 };
        assert_eq!(
            linear,
            Rope {
                base: DEFAULT_BASE,
                scaling
            }
        );
    }

    #[test]
    fn nothing_said_is_no_scaling() {
        let plain = Rope {
            base: DEFAULT_BASE,
            scaling: RopeScaling::None,
        };
        assert_eq!(rope(&json!({})), plain);
        assert_eq!(rope(&json!({"rope_scaling": null})), plain);
        assert_eq!(
            rope(&json!({"rope_parameters": {"rope_type": "default"}})),
            plain
        );
    }

    #[test]
    fn what_is_lacking_is_refused_by_name() {
        for (json, message) in [
            (
                json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}),
                "rope_type = yarn is not supported: default, linear and llama3 are",
            ),
            (
                json!({"rope_scaling": {"rope_type": "linear"}}),
                "factor = null is not supported: a number above 0 is",
            ),
            (
                json!({"rope_scaling": {"rope_type": "linear", "factor": 0}}),
                "factor = 0 is not supported: a number above 0 is",
            ),
            (
                json!({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                    "high_freq_factor": 4}}),
                "high_freq_factor = 4 is not supported: more than low_freq_factor, 4, is",
            ),
            (
                json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
                "rope_parameters = full_attention is not supported: only the same for all layers is",
            ),
            (
                json!({"partial_rotary_factor": 0.5}),
                "partial_rotary_factor = 0.5 is not supported: 1 is",
            ),
        ] {
            let error = read(&json, CONTEXT_TOKENS).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json: {message}"));
        }
    }
}
