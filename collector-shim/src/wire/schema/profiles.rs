//! Profiles, down to where they are counted: their development versions differ from there on (`profiles.proto`).

use super::Kind::{Item, Text};
use super::common::{INSTRUMENTATION_SCOPE, RESOURCE};
use super::{Kind, Message, many, one};

pub(super) static EXPORT_PROFILES_SERVICE_REQUEST: Message = Message::new(
    "ExportProfilesServiceRequest",
    &[many(
        1,
        "resourceProfiles",
        Kind::Message(&RESOURCE_PROFILES),
    )],
);

static RESOURCE_PROFILES: Message = Message::new(
    "ResourceProfiles",
    &[
        one(1, "resource", Kind::Message(&RESOURCE)),
        many(2, "scopeProfiles", Kind::Message(&SCOPE_PROFILES)),
        one(3, "schemaUrl", Text),
    ],
);

static SCOPE_PROFILES: Message = Message::new(
    "ScopeProfiles",
    &[
        one(1, "scope", Kind::Message(&INSTRUMENTATION_SCOPE)),
        many(2, "profiles", Item(None)),
        one(3, "schemaUrl", Text),
    ],
);
