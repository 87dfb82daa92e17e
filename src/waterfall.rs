//! A trace as text: one line a span, its bar on the trace's own time axis, its key attributes.
//!
//! Pure: a [`Trace`] and a width in, a `String` out.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use lantern_shim::{Span, Trace, Value};

/// The narrowest bar column that still shows an order of events.
const MIN_BAR_COLUMNS: usize = 16;
/// Attributes worth a place beside the bar, and the short name they get there.
const KEY_ATTRIBUTES: &[(&str, &str)] = &[
    ("http.response.status_code", "status"),
    ("http.request.resend_count", "resend"),
    ("gen_ai.request.model", "model"),
    ("gen_ai.usage.prompt_tokens", "prompt"),
    ("gen_ai.usage.completion_tokens", "completion"),
    ("gen_ai.latency.time_to_first_token", "ttft_s"),
    ("error.type", "error"),
];

/// One drawn line: a span, how deep it hangs, and the branches beside it.
struct Line<'a> {
    span: &'a Span,
    label: String,
}

/// Draws `trace` for a terminal of `columns` columns; `colour` adds ANSI colours, one a service.
pub(crate) fn draw(trace: &Trace, columns: usize, colour: bool) -> String {
    let lines = lines(trace);
    let Some(start) = trace.spans.iter().map(|span| span.start_unix_ns).min() else {
        return String::new();
    };
    let end = trace
        .spans
        .iter()
        .map(|span| span.end_unix_ns)
        .max()
        .unwrap_or(start);
    let services = services(&lines);
    let service_width = services
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    let label_width = lines
        .iter()
        .map(|line| line.label.chars().count())
        .max()
        .unwrap_or(0);
    let bar_width = columns
        .saturating_sub(service_width + label_width + "  ".len() * 3 + "000.00 ms".len())
        .clamp(MIN_BAR_COLUMNS, 60);

    let mut out = format!(
        "trace {}  {} spans, {} services, {}\n",
        trace.trace_id,
        lines.len(),
        services.len(),
        duration(end - start)
    );
    for line in &lines {
        let bar = bar(line.span, start, end, bar_width);
        let bar = match services
            .iter()
            .position(|name| *name == &*line.span.service_name)
        {
            Some(index) if colour => format!("\x1b[{}m{bar}\x1b[0m", 36 - index % 6),
            _ => bar,
        };
        let took = duration(line.span.duration_ns());
        let _ = writeln!(
            out,
            "{:service_width$}  {:label_width$}  {bar} {took:>9}{}",
            line.span.service_name,
            line.label,
            notes(line.span)
        );
    }
    out
}

/// The spans as a tree, depth first and in order of time. A span whose parent is missing is a root.
fn lines(trace: &Trace) -> Vec<Line<'_>> {
    let known: HashSet<&str> = trace
        .spans
        .iter()
        .map(|span| span.span_id.as_str())
        .collect();
    let mut children: HashMap<Option<&str>, Vec<&Span>> = HashMap::new();
    for span in &trace.spans {
        let parent = span
            .parent_span_id
            .as_deref()
            .filter(|parent| known.contains(parent));
        children.entry(parent).or_default().push(span);
    }
    for siblings in children.values_mut() {
        siblings.sort_by_key(|span| (span.start_unix_ns, span.end_unix_ns));
    }
    let mut lines = Vec::with_capacity(trace.spans.len());
    // What is still to draw, next on top: the span and the branches of its ancestors. `remove`
    // takes each list of children once, so a cycle in a broken trace ends.
    let mut pending = Vec::new();
    push_children(&mut pending, children.remove(&None), None);
    while let Some((span, label, indent)) = pending.pop() {
        lines.push(Line { span, label });
        push_children(
            &mut pending,
            children.remove(&Some(&span.span_id)),
            Some(&indent),
        );
    }
    lines
}

type Pending<'a> = (&'a Span, String, String);

fn push_children<'a>(
    pending: &mut Vec<Pending<'a>>,
    spans: Option<Vec<&'a Span>>,
    indent: Option<&str>,
) {
    let spans = spans.unwrap_or_default();
    let last = spans.len().saturating_sub(1);
    for (index, span) in spans.into_iter().enumerate().rev() {
        let (branch, below) = match indent {
            None => ("", ""),
            Some(_) if index == last => ("└ ", "  "),
            Some(_) => ("├ ", "│ "),
        };
        let indent = indent.unwrap_or_default();
        pending.push((
            span,
            format!("{indent}{branch}{}", span.name),
            format!("{indent}{below}"),
        ));
    }
}

/// Service names in the order in which they appear in the tree.
fn services<'a>(lines: &[Line<'a>]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for line in lines {
        if !names.contains(&&*line.span.service_name) {
            names.push(&line.span.service_name);
        }
    }
    names
}

/// A bar of `width` columns: at least one block, however short the span.
fn bar(span: &Span, start: u64, end: u64, width: usize) -> String {
    let total = (end - start).max(1) as f64;
    let column = |at: u64| ((at - start) as f64 / total * width as f64).round() as usize;
    let from = column(span.start_unix_ns).min(width - 1);
    let to = column(span.end_unix_ns.max(span.start_unix_ns)).clamp(from + 1, width);
    format!(
        "{}{}{}",
        "·".repeat(from),
        "█".repeat(to - from),
        "·".repeat(width - to)
    )
}

fn duration(nanos: u64) -> String {
    match nanos {
        0..1_000_000 => format!("{:.1} µs", nanos as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", nanos as f64 / 1e6),
        _ => format!("{:.3} s", nanos as f64 / 1e9),
    }
}

fn notes(span: &Span) -> String {
    let mut out = String::new();
    for (key, short) in KEY_ATTRIBUTES {
        let _ = match span.attribute(key) {
            Some(Value::Double(number)) => write!(out, "  {short}={number:.4}"),
            Some(value) => write!(out, "  {short}={value}"),
            None => Ok(()),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lantern_shim::{SpanKind, Status};

    use super::*;

    fn span(service: &str, name: &str, id: &str, parent: &str, times_us: (u64, u64)) -> Span {
        Span {
            service_name: service.into(),
            name: name.into(),
            span_id: id.into(),
            parent_span_id: (!parent.is_empty()).then(|| parent.into()),
            start_unix_ns: times_us.0 * 1000,
            end_unix_ns: times_us.1 * 1000,
            kind: SpanKind::Internal,
            trace_state: String::new(),
            attributes: Vec::new(),
            events: Vec::new(),
            links: Vec::new(),
            status: Status::default(),
            resource: Arc::default(),
            scope: Arc::default(),
        }
    }

    #[test]
    fn spans_hang_below_their_parents_in_order_of_time() {
        let trace = Trace {
            trace_id: "4bf9".into(),
            spans: vec![
                span("engine", "decode", "d", "l", (60, 100)),
                span("engine", "prefill", "p", "l", (20, 60)),
                span("engine", "llm_request", "l", "s", (20, 100)),
                span("proxy", "POST /v1/completions", "s", "", (0, 100)),
            ],
        };
        assert_eq!(
            draw(&trace, 66, false),
            "trace 4bf9  4 spans, 2 services, 100.0 µs\n\
             proxy   POST /v1/completions  █████████████████████████  100.0 µs\n\
             engine  └ llm_request         ·····████████████████████   80.0 µs\n\
             engine    ├ prefill           ·····██████████··········   40.0 µs\n\
             engine    └ decode            ···············██████████   40.0 µs\n"
        );
    }

    #[test]
    fn a_span_whose_parent_never_came_is_still_drawn() {
        let trace = Trace {
            trace_id: "1".into(),
            spans: vec![span("a", "orphan", "x", "missing", (0, 1))],
        };
        assert!(draw(&trace, 80, false).contains("orphan"));
    }

    #[test]
    fn spans_that_are_each_others_parent_do_not_hang_the_drawing() {
        let trace = Trace {
            trace_id: "1".into(),
            spans: vec![
                span("a", "one", "1", "2", (0, 1)),
                span("a", "two", "2", "1", (0, 1)),
                span("a", "root", "3", "", (0, 1)),
            ],
        };
        assert!(draw(&trace, 80, false).contains("root"));
    }
}
