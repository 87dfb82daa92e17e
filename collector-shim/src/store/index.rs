//! Which services and operations the store holds, and how many spans of each: so that listing them
//! does not look at every span.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::size_of;
use std::sync::Arc;

use super::model::{Span, SpanKind, allocated_bytes, shared_bytes};
use super::query::TraceQuery;

type Operations = BTreeMap<(String, SpanKind), u64>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    services: BTreeMap<Arc<str>, Operations>,
}

/// A service's place in the map, of which up to half may be empty, and the first node of its own map.
const SERVICE_BYTES: usize =
    2 * size_of::<(Arc<str>, Operations)>() + 12 * size_of::<((String, SpanKind), u64)>();
const OPERATION_BYTES: usize = 2 * size_of::<((String, SpanKind), u64)>();

fn service_bytes(service: &str) -> usize {
    SERVICE_BYTES + shared_bytes(service.len())
}

fn operation_bytes(operation: &str) -> usize {
    OPERATION_BYTES + allocated_bytes(operation.len())
}

impl Index {
    /// Counts a span that is kept; the bytes that this takes.
    pub(super) fn add(&mut self, span: &Span) -> usize {
        let mut bytes = 0;
        let service = &span.service_name;
        let operations = self.services.entry(Arc::clone(service)).or_insert_with(|| {
            bytes += service_bytes(service);
            Operations::new()
        });
        let key = (span.name.clone(), span.kind);
        let spans = operations.entry(key).or_insert_with(|| {
            bytes += operation_bytes(&span.name);
            0
        });
        *spans += 1;
        bytes
    }

    /// Forgets a span that goes; the bytes that this frees.
    pub(super) fn remove(&mut self, span: &Span) -> usize {
        let mut bytes = 0;
        let counted = "every span kept was counted";
        let operations = self.services.get_mut(&span.service_name).expect(counted);
        let key = (span.name.clone(), span.kind);
        let spans = operations.get_mut(&key).expect(counted);
        *spans -= 1;
        if *spans == 0 {
            operations.remove(&key);
            bytes += operation_bytes(&span.name);
        }
        if operations.is_empty() {
            self.services.remove(&span.service_name);
            bytes += service_bytes(&span.service_name);
        }
        bytes
    }

    /// False when no span has the service and operation that `query` asks for.
    pub(super) fn may_match(&self, query: &TraceQuery) -> bool {
        let Some(service) = &query.service else {
            return true;
        };
        let Some(operations) = self.services.get(&**service) else {
            return false;
        };
        query
            .operation
            .as_ref()
            .is_none_or(|asked| operations.keys().any(|(operation, _)| operation == asked))
    }

    pub(super) fn services(&self) -> BTreeSet<Arc<str>> {
        self.services.keys().cloned().collect()
    }

    pub(super) fn operations(&self, service: &str) -> BTreeSet<(String, SpanKind)> {
        let operations = self.services.get(service);
        operations.map_or_else(BTreeSet::new, |known| known.keys().cloned().collect())
    }
}
