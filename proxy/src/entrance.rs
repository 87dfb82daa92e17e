//! What a request has to pass before an upstream is chosen for it: the method, the API key, the limits.

use std::sync::Arc;

use http::Method;
use http::header::AUTHORIZATION;
use http::request::Parts;
use pingora::http::RequestHeader;

use crate::access::{Access, X_API_KEY};
use crate::error::Failure;
use crate::limits::Gate;
use crate::request::RequestContext;

/// Lets requests in.
pub(crate) struct Entrance {
    /// `None`: everybody is let in.
    access: Option<Access>,
    gate: Arc<Gate>,
}

impl Entrance {
    pub(crate) fn new(access: Option<Access>, gate: Gate) -> Self {
        Self {
            access,
            gate: Arc::new(gate),
        }
    }

    /// Lets a request in by its head.
    pub(crate) fn admit(&self, head: &Parts, ctx: &mut RequestContext) -> Result<(), Failure> {
        if head.method == Method::CONNECT {
            return Err(Failure::MethodNotAllowed);
        }
        if let Some(access) = &self.access {
            Self::admit_by_key(access, head, ctx)?;
        }
        ctx.admission = Some(self.gate.admit(head)?);
        Ok(())
    }

    fn admit_by_key(
        access: &Access,
        head: &Parts,
        ctx: &mut RequestContext,
    ) -> Result<(), Failure> {
        let is_read = ctx.span().is_some_and(|span| span.tokens().is_some());
        let admitted = access.admit(head, is_read);
        let name = match &admitted {
            Ok(guest) => guest.as_ref().map(|guest| &guest.name),
            Err(denied) => denied.name.as_ref(),
        };
        if let (Some(span), Some(name)) = (ctx.span(), name) {
            span.set_api_key(name);
        }
        match admitted {
            Ok(guest) => {
                ctx.guest = guest;
                Ok(())
            }
            Err(denied) => {
                ctx.retry_after = denied.retry_after;
                Err(denied.failure)
            }
        }
    }

    /// A key that is the proxy's to look at is none of the upstream's business.
    pub(crate) fn keep_key(&self, request: &mut RequestHeader) {
        if self.access.is_some() {
            request.remove_header(&AUTHORIZATION);
            request.remove_header(&X_API_KEY);
        }
    }
}
