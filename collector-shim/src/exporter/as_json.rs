//! Requests for backends that take OTLP/JSON.

use lantern_telemetry::LimitedLog;
use tonic::Code;

use super::{Cause, Rejection, shortened};
use crate::coding::{self, Coding};
use crate::encode;
use crate::queue::Payload;
use crate::signal::Signal;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct AsJson {
    losses: LimitedLog,
}

impl AsJson {
    /// Of profiles the tables know no more than that they are there.
    pub(super) fn has_words_for(signal: Signal) -> bool {
        signal != Signal::Profiles
    }

    /// `payload` in JSON, compressed by gzip if that is `gzipped`.
    pub(super) fn encode(
        &self,
        endpoint: &str,
        payload: &Payload,
        gzipped: bool,
    ) -> Result<Payload, Rejection> {
        let mut json = Vec::new();
        let encoded = encode::to_json(&mut json, payload.signal, &payload.decompressed());
        let lossy = encoded.map_err(|error| Rejection {
            reason: shortened(&format!("there is no JSON for it: {error}")),
            cause: Cause::Data,
            code: Code::InvalidArgument,
        })?;
        if lossy.is_any()
            && let Some(requests) = self.losses.due(1)
        {
            let (unknown_fields, repaired_texts) = (lossy.unknown_fields, lossy.repaired_texts);
            tracing::warn!(
                endpoint,
                requests,
                unknown_fields,
                repaired_texts,
                "JSON does not say all that came"
            );
        }
        let (coding, bytes) = if gzipped {
            (Coding::Gzip, coding::gzip(&json))
        } else {
            (Coding::Identity, json)
        };
        Ok(Payload {
            coding,
            bytes: bytes.into(),
            ..payload.clone()
        })
    }
}
