//! Whether a request that broke may be sent again.
//!
//! It may if the upstream says in HTTP/2 that it has not looked at it; or if the connection came from the
//! pool and ended without a byte of an answer, as it does when the upstream gives up an idle connection,
//! and, unless the method is idempotent, the upstream cannot have read the whole request.
//! <https://www.rfc-editor.org/rfc/rfc9110.html#section-9.2.2>

use pingora::{Error, ErrorSource, ErrorType};

/// What is known of a request that broke.
pub(crate) struct Broken {
    /// Whether its connection came from the pool.
    pub(crate) reused: bool,
    /// Whether it may be processed twice, or the upstream cannot have read all of it.
    pub(crate) harmless: bool,
    /// Whether the upstream has said anything.
    pub(crate) answered: bool,
    /// Whether what has passed of the body is still there: pingora keeps 64 KiB.
    pub(crate) body_kept: bool,
}

impl Broken {
    pub(crate) fn may_be_sent_again(&self, error: &mut Error) -> bool {
        let is_going_away = self.reused && self.harmless && closed_without_a_byte(error);
        !self.answered && self.body_kept && (is_going_away || is_refused(error))
    }
}

/// Whether the upstream connection ended before a byte of an answer. pingora tells how many bytes
/// of a head it had only in the text of its error.
fn closed_without_a_byte(error: &Error) -> bool {
    if *error.esource() != ErrorSource::Upstream {
        return false;
    }
    match error.etype() {
        ErrorType::WriteError => true,
        ErrorType::ConnectionClosed | ErrorType::ReadError => error
            .context
            .as_ref()
            .is_some_and(|context| context.as_str().ends_with("bytes already read: 0")),
        _ => false,
    }
}

/// Whether the upstream has told that it did not look at the request: by REFUSED_STREAM, by a GOAWAY without
/// an error that counts the request out, or by HTTP_1_1_REQUIRED.
fn is_refused(error: &mut Error) -> bool {
    // What may be tried again only on connections from the pool is no such word.
    error.retry.decide_reuse(false);
    let is_word_of_http2 = matches!(error.etype(), ErrorType::H2Error | ErrorType::H2Downgrade);
    is_word_of_http2 && error.retry()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(bytes: usize) -> Box<Error> {
        let context = format!("while reading response headers, bytes already read: {bytes}");
        Error::explain(ErrorType::ConnectionClosed, context)
    }

    fn broken() -> Broken {
        Broken {
            reused: true,
            harmless: true,
            answered: false,
            body_kept: true,
        }
    }

    #[test]
    fn only_a_connection_that_ended_without_a_byte_of_an_answer_is_tried_again() {
        for (mut error, again) in [
            (closed(0).into_up(), true),
            (closed(10).into_up(), false),
            (closed(0).into_down(), false),
            (Error::new_up(ErrorType::WriteError), true),
            (Error::new_up(ErrorType::ReadTimedout), false),
        ] {
            assert_eq!(broken().may_be_sent_again(&mut error), again, "{error}");
        }
    }

    #[test]
    fn every_condition_counts() {
        for broken in [
            Broken {
                reused: false,
                ..broken()
            },
            Broken {
                harmless: false,
                ..broken()
            },
            Broken {
                answered: true,
                ..broken()
            },
            Broken {
                body_kept: false,
                ..broken()
            },
        ] {
            assert!(!broken.may_be_sent_again(&mut closed(0).into_up()));
        }
    }

    #[test]
    fn what_http2_says_was_not_looked_at_is_sent_again_whatever_it_was() {
        let harmful = Broken {
            reused: false,
            harmless: false,
            ..broken()
        };
        let mut refused = Error::new_up(ErrorType::H2Error);
        refused.set_retry(true);
        assert!(harmful.may_be_sent_again(&mut refused));
        let mut broke = Error::new_up(ErrorType::H2Error);
        assert!(!harmful.may_be_sent_again(&mut broke));
        let mut invalid = Error::new_up(ErrorType::InvalidH2);
        invalid.set_retry(true);
        assert!(!harmful.may_be_sent_again(&mut invalid));
    }
}
