//! The layers that models are made of, each written once and over ragged batches.
//!
//! Letters in shapes as in [`crate::ops`].
//!
//! # Layout
//! - `decoder_layer`: attention and feed-forward around the residual stream
//! - `rotary`: positions as rotations, scaled for long contexts
//! - `scope`: where in the weights a layer's tensors are

mod decoder_layer;
mod rotary;
mod scope;

pub(crate) use decoder_layer::{NormPlace, Pass, run_layers};
pub(crate) use rotary::{Rope, RopeScaling};
pub(crate) use scope::{Loaded, Scope, in_one_product};
