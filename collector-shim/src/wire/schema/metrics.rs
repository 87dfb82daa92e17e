//! Metrics (`metrics.proto`).

use super::Kind::{Bool, Double, Enum, Fixed64, Item, Sfixed64, Sint32, Text, Uint32, Uint64};
use super::common::{INSTRUMENTATION_SCOPE, KEY_VALUE, RESOURCE};
use super::{Kind, Message, SPAN_ID, TRACE_ID, either, many, one};

pub(super) static EXPORT_METRICS_SERVICE_REQUEST: Message = Message::new(
    "ExportMetricsServiceRequest",
    &[many(1, "resourceMetrics", Kind::Message(&RESOURCE_METRICS))],
);

static RESOURCE_METRICS: Message = Message::new(
    "ResourceMetrics",
    &[
        one(1, "resource", Kind::Message(&RESOURCE)),
        many(2, "scopeMetrics", Kind::Message(&SCOPE_METRICS)),
        one(3, "schemaUrl", Text),
    ],
);

static SCOPE_METRICS: Message = Message::new(
    "ScopeMetrics",
    &[
        one(1, "scope", Kind::Message(&INSTRUMENTATION_SCOPE)),
        many(2, "metrics", Kind::Message(&METRIC)),
        one(3, "schemaUrl", Text),
    ],
);

static METRIC: Message = Message::new(
    "Metric",
    &[
        one(1, "name", Text),
        one(2, "description", Text),
        one(3, "unit", Text),
        either(5, "gauge", Kind::Message(&GAUGE)),
        either(7, "sum", Kind::Message(&SUM)),
        either(9, "histogram", Kind::Message(&HISTOGRAM)),
        either(
            10,
            "exponentialHistogram",
            Kind::Message(&EXPONENTIAL_HISTOGRAM),
        ),
        either(11, "summary", Kind::Message(&SUMMARY)),
        many(12, "metadata", Kind::Message(&KEY_VALUE)),
    ],
);

static GAUGE: Message = Message::new(
    "Gauge",
    &[many(1, "dataPoints", Item(Some(&NUMBER_DATA_POINT)))],
);

static SUM: Message = Message::new(
    "Sum",
    &[
        many(1, "dataPoints", Item(Some(&NUMBER_DATA_POINT))),
        one(2, "aggregationTemporality", Enum(TEMPORALITIES)),
        one(3, "isMonotonic", Bool),
    ],
);

static HISTOGRAM: Message = Message::new(
    "Histogram",
    &[
        many(1, "dataPoints", Item(Some(&HISTOGRAM_DATA_POINT))),
        one(2, "aggregationTemporality", Enum(TEMPORALITIES)),
    ],
);

static EXPONENTIAL_HISTOGRAM: Message = Message::new(
    "ExponentialHistogram",
    &[
        many(
            1,
            "dataPoints",
            Item(Some(&EXPONENTIAL_HISTOGRAM_DATA_POINT)),
        ),
        one(2, "aggregationTemporality", Enum(TEMPORALITIES)),
    ],
);

static SUMMARY: Message = Message::new(
    "Summary",
    &[many(1, "dataPoints", Item(Some(&SUMMARY_DATA_POINT)))],
);

static NUMBER_DATA_POINT: Message = Message::new(
    "NumberDataPoint",
    &[
        one(2, "startTimeUnixNano", Fixed64),
        one(3, "timeUnixNano", Fixed64),
        either(4, "asDouble", Double),
        many(5, "exemplars", Kind::Message(&EXEMPLAR)),
        either(6, "asInt", Sfixed64),
        many(7, "attributes", Kind::Message(&KEY_VALUE)),
        one(8, "flags", Uint32),
    ],
);

static HISTOGRAM_DATA_POINT: Message = Message::new(
    "HistogramDataPoint",
    &[
        one(2, "startTimeUnixNano", Fixed64),
        one(3, "timeUnixNano", Fixed64),
        one(4, "count", Fixed64),
        one(5, "sum", Double),
        many(6, "bucketCounts", Fixed64),
        many(7, "explicitBounds", Double),
        many(8, "exemplars", Kind::Message(&EXEMPLAR)),
        many(9, "attributes", Kind::Message(&KEY_VALUE)),
        one(10, "flags", Uint32),
        one(11, "min", Double),
        one(12, "max", Double),
    ],
);

static EXPONENTIAL_HISTOGRAM_DATA_POINT: Message = Message::new(
    "ExponentialHistogramDataPoint",
    &[
        many(1, "attributes", Kind::Message(&KEY_VALUE)),
        one(2, "startTimeUnixNano", Fixed64),
        one(3, "timeUnixNano", Fixed64),
        one(4, "count", Fixed64),
        one(5, "sum", Double),
        one(6, "scale", Sint32),
        one(7, "zeroCount", Fixed64),
        one(8, "positive", Kind::Message(&BUCKETS)),
        one(9, "negative", Kind::Message(&BUCKETS)),
        one(10, "flags", Uint32),
        many(11, "exemplars", Kind::Message(&EXEMPLAR)),
        one(12, "min", Double),
        one(13, "max", Double),
        one(14, "zeroThreshold", Double),
    ],
);

static BUCKETS: Message = Message::new(
    "Buckets",
    &[one(1, "offset", Sint32), many(2, "bucketCounts", Uint64)],
);

static SUMMARY_DATA_POINT: Message = Message::new(
    "SummaryDataPoint",
    &[
        one(2, "startTimeUnixNano", Fixed64),
        one(3, "timeUnixNano", Fixed64),
        one(4, "count", Fixed64),
        one(5, "sum", Double),
        many(6, "quantileValues", Kind::Message(&VALUE_AT_QUANTILE)),
        many(7, "attributes", Kind::Message(&KEY_VALUE)),
        one(8, "flags", Uint32),
    ],
);

static VALUE_AT_QUANTILE: Message = Message::new(
    "ValueAtQuantile",
    &[one(1, "quantile", Double), one(2, "value", Double)],
);

static EXEMPLAR: Message = Message::new(
    "Exemplar",
    &[
        one(2, "timeUnixNano", Fixed64),
        either(3, "asDouble", Double),
        one(4, "spanId", SPAN_ID),
        one(5, "traceId", TRACE_ID),
        either(6, "asInt", Sfixed64),
        many(7, "filteredAttributes", Kind::Message(&KEY_VALUE)),
    ],
);

static TEMPORALITIES: &[(&str, i32)] = &[
    ("AGGREGATION_TEMPORALITY_UNSPECIFIED", 0),
    ("AGGREGATION_TEMPORALITY_DELTA", 1),
    ("AGGREGATION_TEMPORALITY_CUMULATIVE", 2),
];
