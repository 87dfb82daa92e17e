//! What a backend says of a request that it took, read from its protocol and written in ours.

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message as _;
use serde_json::Value;

use super::shortened;
use crate::signal::Signal;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Accepted {
    /// So many items were refused for good.
    pub(crate) rejected: u64,
    /// Why; or a warning, when none was.
    pub(crate) message: String,
}

impl Accepted {
    /// Reads an `ExportTraceServiceResponse`. Those of the other signals have the same shape. The
    /// status has said that the request was accepted; an answer that cannot be read does not change
    /// that.
    pub(super) fn from_protobuf(response: &[u8]) -> Accepted {
        let response = ExportTraceServiceResponse::decode(response).unwrap_or_default();
        let partial = response.partial_success.unwrap_or_default();
        Accepted {
            rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
            message: shortened(&partial.error_message),
        }
    }

    /// The same of a response in JSON, whose counts may be numbers or text.
    pub(super) fn from_json(response: &[u8], signal: Signal) -> Accepted {
        let response: Value = serde_json::from_slice(response).unwrap_or_default();
        let partial = &response["partialSuccess"];
        let rejected = &partial[signal.rejected_key()];
        let as_text = || rejected.as_str().and_then(|text| text.parse().ok());
        Accepted {
            rejected: rejected.as_u64().or_else(as_text).unwrap_or(0),
            message: shortened(partial["errorMessage"].as_str().unwrap_or_default()),
        }
    }

    fn is_full(&self) -> bool {
        *self == Accepted::default()
    }

    /// As a response in protobuf. Of full success nothing is set, as OTLP asks.
    pub(crate) fn to_protobuf(&self) -> Vec<u8> {
        let partial_success = (!self.is_full()).then(|| ExportTracePartialSuccess {
            rejected_spans: i64::try_from(self.rejected).unwrap_or(i64::MAX),
            error_message: self.message.clone(),
        });
        ExportTraceServiceResponse { partial_success }.encode_to_vec()
    }

    /// As a response in JSON.
    pub(crate) fn to_json(&self, signal: Signal) -> String {
        if self.is_full() {
            return "{}".to_owned();
        }
        let rejected = self.rejected.to_string();
        serde_json::json!({
            "partialSuccess": {
                signal.rejected_key(): rejected,
                "errorMessage": self.message,
            }
        })
        .to_string()
    }

    /// Of what two backends said of the same request, what is to be told.
    pub(super) fn or_worse(self, other: Accepted) -> Accepted {
        if other.rejected > self.rejected || self.message.is_empty() {
            return other;
        }
        self
    }

    /// What was said of two parts of a request.
    pub(super) fn and(self, other: Accepted) -> Accepted {
        Accepted {
            rejected: self.rejected + other.rejected,
            message: if self.message.is_empty() {
                other.message
            } else {
                self.message
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_json_is_read_from_it() {
        let accepted = Accepted {
            rejected: 3,
            message: "some were too old".to_owned(),
        };
        for signal in Signal::ALL {
            let json = accepted.to_json(signal);
            assert_eq!(Accepted::from_json(json.as_bytes(), signal), accepted);
        }
        let number =
            br#"{"partialSuccess":{"rejectedSpans":3,"errorMessage":"some were too old"}}"#;
        assert_eq!(Accepted::from_json(number, Signal::Traces), accepted);
        for full in ["{}", "", r#"{"partialSuccess":null}"#, "<html>"] {
            let read = Accepted::from_json(full.as_bytes(), Signal::Traces);
            assert_eq!(read, Accepted::default(), "{full}");
        }
    }
}
