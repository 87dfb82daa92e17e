//! candle's errors as one line: by themselves they print a backtrace, which is nothing for a client to read.

use candle_core::Error;

/// What candle, or the device under it, could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TensorError(String);

impl From<Error> for TensorError {
    fn from(error: Error) -> Self {
        tracing::debug!("{error:?}");
        Self(one_line(&error))
    }
}

fn one_line(error: &Error) -> String {
    match error {
        Error::WithBacktrace { inner, .. } => one_line(inner),
        Error::WithPath { inner, path } => format!("{}: {}", path.display(), one_line(inner)),
        Error::Context { inner, context } => format!("{context}: {}", one_line(inner)),
        Error::WrappedContext { wrapped, context } => format!("{context}: {wrapped}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::backtrace::Backtrace;

    use super::*;

    #[test]
    fn backtraces_are_left_out_and_contexts_kept() {
        let backtrace = Box::new(Backtrace::force_capture());
        let inner = Box::new(Error::Msg("out of memory".to_owned()));
        let error = Error::WithBacktrace { inner, backtrace }.context("layer 3");
        assert_eq!(
            TensorError::from(error).to_string(),
            "layer 3: out of memory"
        );
    }
}
