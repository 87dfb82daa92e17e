//! Series that have been found, by what tells them apart: to find them by their labels costs many times what
//! an observation does.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::fast::RandomState;

/// The series of all keys so far. There are as many as there are series, which is bounded by what keys are
/// made of.
pub(super) struct Found<K, S>(RwLock<HashMap<K, Arc<S>, RandomState>>);

impl<K, S> Default for Found<K, S> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Eq + Hash, S> Found<K, S> {
    /// The series of `key`, which `find` finds the first time.
    pub(super) fn get(&self, key: K, find: impl FnOnce(&K) -> S) -> Arc<S> {
        // Every change is whole at once.
        let found = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = found.get(&key) {
            return Arc::clone(series);
        }
        drop(found);
        let series = find(&key);
        let mut found = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(found.entry(key).or_insert_with(|| Arc::new(series)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_series_is_found_once() {
        let found = Found::default();
        let mut finds = 0;
        for key in ["a", "b", "a", "b"] {
            let series = found.get(key, |key| {
                finds += 1;
                key.to_uppercase()
            });
            assert_eq!(*series, key.to_uppercase());
        }
        assert_eq!(finds, 2);
    }
}
