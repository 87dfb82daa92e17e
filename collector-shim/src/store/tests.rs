//! Properties of the store: what goes first, and that the bound holds.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn span(id: u64, name_bytes: usize) -> Span {
    Span {
        service_name: "service".into(),
        name: "n".repeat(name_bytes),
        kind: SpanKind::Internal,
        span_id: format!("{id:016x}"),
        parent_span_id: None,
        trace_state: String::new(),
        start_unix_ns: id,
        end_unix_ns: id + 1,
        attributes: Vec::new(),
        events: Vec::new(),
        links: Vec::new(),
        status: Status::default(),
        resource: Arc::default(),
        scope: Arc::default(),
    }
}

fn trace(id: u8, spans: Vec<Span>) -> Trace {
    Trace {
        trace_id: format!("{id:032x}"),
        spans,
    }
}

/// What a store of one such trace takes.
fn bytes_of(trace: Trace) -> usize {
    let store = Store::new(usize::MAX);
    store.insert(vec![trace]);
    store.holdings().bytes
}

#[test]
fn the_trace_that_came_first_goes_first_whole() {
    let two = |id| trace(id, vec![span(1, 10), span(2, 10)]);
    let three = Store::new(usize::MAX);
    three.insert((1..=3).map(two).collect());
    let store = Store::new(three.holdings().bytes);
    (1..=3).for_each(|id| store.insert(vec![two(id)]));
    assert_eq!(store.holdings().evicted_traces, 0);
    // A late span of the oldest trace does not make it younger.
    store.insert(vec![trace(1, vec![span(3, 10)])]);
    assert!(store.trace("1").is_none());
    assert_eq!(store.trace("2").map(|trace| trace.spans.len()), Some(2));
    assert_eq!(store.trace("3").map(|trace| trace.spans.len()), Some(2));
    let holdings = store.holdings();
    assert_eq!((holdings.evicted_traces, holdings.evicted_spans), (1, 3));
}

#[test]
fn the_same_span_twice_is_kept_once() {
    let store = Store::new(usize::MAX);
    let sent = trace(1, vec![span(1, 3), span(2, 3)]);
    store.insert(vec![sent.clone()]);
    let before = store.holdings();
    store.insert(vec![sent]);
    assert_eq!(store.holdings(), before);
}

#[test]
fn the_longest_spans_that_link_to_a_trace_are_found_in_the_order_of_their_start() {
    let linking = |id: u64, to: u8, duration_ns| {
        let mut span = span(id, 1);
        span.end_unix_ns = span.start_unix_ns + duration_ns;
        span.links.push(Link {
            trace_id: format!("{to:032x}"),
            span_id: format!("{:016x}", 1),
            attributes: Vec::new(),
        });
        span
    };
    let store = Store::new(usize::MAX);
    store.insert(vec![
        // A link within a trace is no news to it.
        trace(1, vec![span(1, 1), linking(2, 1, 90)]),
        trace(2, vec![linking(30, 1, 50), span(31, 1)]),
        trace(
            3,
            vec![linking(20, 1, 70), linking(10, 1, 40), linking(40, 2, 99)],
        ),
    ]);
    let found = store.linking("1", 2).into_iter();
    let found = found.map(|other| {
        let starts = other.spans.iter().map(|span| span.start_unix_ns);
        (other.trace_id, starts.collect::<Vec<_>>())
    });
    let expected = [(3, 20), (2, 30)].map(|(id, at)| (format!("{id:032x}"), vec![at]));
    assert_eq!(found.collect::<Vec<_>>(), expected);
    assert!(store.linking("3", 2).is_empty());
}

#[test]
fn a_parent_of_another_service_is_a_dependency() {
    let store = Store::new(usize::MAX);
    let mut child = span(2, 1);
    child.service_name = "callee".into();
    child.parent_span_id = Some(format!("{:016x}", 1));
    let mut own_child = child.clone();
    own_child.span_id = format!("{:016x}", 3);
    own_child.parent_span_id = Some(child.span_id.clone());
    store.insert(vec![trace(1, vec![span(1, 1), child, own_child])]);
    let calls: Vec<_> = store.dependencies(0..=10).into_iter().collect();
    assert_eq!(calls, [(("service".into(), "callee".into()), 1)]);
    assert!(store.dependencies(5..=10).is_empty());
}

#[test]
fn what_spans_share_counts_too() {
    let plain = bytes_of(trace(1, vec![span(1, 1)]));
    let long = "x".repeat(4_000);
    let mut of_scope = span(1, 1);
    of_scope.scope = Arc::new(Scope {
        name: long.clone(),
        version: long.clone(),
    });
    assert!(bytes_of(trace(1, vec![of_scope])) >= plain + 2 * long.len());
    let mut of_service = span(1, 1);
    of_service.service_name = long.as_str().into();
    assert!(bytes_of(trace(1, vec![of_service])) >= plain + long.len() - "service".len());
}

#[test]
fn lists_and_searches_know_what_is_kept_and_forget_what_went() {
    let of = |id: u8, start: u64, service: &str, name: &str| {
        let mut span = span(start, 1);
        (span.service_name, span.name) = (service.into(), name.to_owned());
        trace(id, vec![span])
    };
    let sent = [
        of(1, 30, "a", "x"),
        of(2, 10, "b", "y"),
        of(3, 20, "a", "z"),
    ];
    let late = of(1, 5, "a", "x");
    let last = of(4, 50, "a", "w");
    let everything = Store::new(usize::MAX);
    everything.insert([&sent[..], &[late.clone(), last.clone()]].concat());
    let store = Store::new(everything.holdings().bytes - 1);
    store.insert(sent.to_vec());
    let ids = |limit: usize| {
        let mut query = TraceQuery::newest(100, limit);
        query.start_min_ns = 0;
        let found = store.find(&query).into_iter();
        found
            .map(|found| found.trace_id[31..].to_owned())
            .collect::<String>()
    };
    assert_eq!((ids(9), ids(2)), ("132".to_owned(), "13".to_owned()));
    // A late span that began first makes its trace the oldest.
    store.insert(vec![late]);
    assert_eq!(ids(9), "321");
    // The first to come goes, and with it the operation that it alone had.
    store.insert(vec![last]);
    assert!(store.trace("1").is_none());
    let operations: Vec<_> = store
        .operations("a")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(operations, ["w", "z"]);
    assert_eq!(store.services().len(), 2);
    assert_eq!(ids(9), "432");
}

proptest! {
    #[test]
    fn what_is_kept_is_within_the_bound_and_the_latest_to_arrive(
        inserts in prop::collection::vec((0_u8..12, 1_usize..4, 0_usize..400), 1..60),
        max_bytes in 0_usize..8_000,
    ) {
        let store = Store::new(max_bytes);
        // A model that knows the order of arrival alone.
        let mut arrivals: Vec<String> = Vec::new();
        let mut sent_spans = 0;
        for (at, (id, spans, name_bytes)) in inserts.into_iter().enumerate() {
            let spans = (0..spans).map(|n| span((at * 10 + n) as u64, name_bytes));
            let trace = trace(id, spans.collect());
            sent_spans += trace.spans.len() as u64;
            if !arrivals.contains(&trace.trace_id) {
                arrivals.push(trace.trace_id.clone());
            }
            store.insert(vec![trace]);
            // Gone are the first so many to arrive, and no others.
            let gone = arrivals.iter().take_while(|id| store.trace(id).is_none()).count();
            arrivals.drain(..gone);
            prop_assert!(arrivals.iter().all(|id| store.trace(id).is_some()));

            let holdings = store.holdings();
            prop_assert!(holdings.bytes <= max_bytes);
            prop_assert_eq!(holdings.traces, arrivals.len() as u64);
            prop_assert_eq!(holdings.spans + holdings.evicted_spans, sent_spans);
            let kept: usize =
                arrivals.iter().filter_map(|id| store.trace(id)).map(|t| t.spans.len()).sum();
            prop_assert_eq!(holdings.spans, kept as u64);
            prop_assert_eq!(holdings.bytes == 0, arrivals.is_empty());
        }
    }
}
