//! Names with a colon, which the API refuses and OTLP allows.

use std::borrow::Cow;

use opentelemetry_sdk::metrics::{Instrument, Stream};

/// Prometheus' separator of a name's owner, which the API refuses in the name of an instrument.
pub(super) const COLON: &str = ":";
/// What stands for it there; the API takes it, and no name of ours has it.
const IN_ITS_STEAD: &str = "/";

/// `name` as an instrument may be called. It is exported as it was: see [`as_named`].
pub(super) fn legal(name: &'static str) -> Cow<'static, str> {
    if name.contains(COLON) {
        name.replace(COLON, IN_ITS_STEAD).into()
    } else {
        name.into()
    }
}

/// The same for a counter: Prometheus' names of these end alike.
pub(super) fn total(name: &'static str) -> Cow<'static, str> {
    let name_in_otlp = legal(name);
    if name.contains(COLON) {
        format!("{name_in_otlp}_total").into()
    } else {
        name_in_otlp
    }
}

/// The view that gives names with a colon back to their instruments.
pub(crate) fn as_named(instrument: &Instrument) -> Option<Stream> {
    let name = instrument.name();
    let renamed = name.replace(IN_ITS_STEAD, COLON);
    (renamed != name).then(|| {
        let stream = Stream::builder().with_name(renamed).build();
        stream.expect("a name alone is a stream")
    })
}
