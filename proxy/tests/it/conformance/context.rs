//! W3C trace context and baggage: what is continued, what is started anew.
//! <https://www.w3.org/TR/trace-context/>

use super::{BASE, Case};

pub(super) const CASES: &[Case] = &[
    Case {
        title: "a valid traceparent is continued",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        continues: true,
        ..BASE
    },
    Case {
        title: "tracestate goes with its trace",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "tracestate: rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        ],
        name: "GET /health",
        continues: true,
        sent: &[(
            "tracestate",
            Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        )],
        ..BASE
    },
    Case {
        title: "a malformed traceparent is replaced, and its tracestate dropped",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-not-a-trace-01",
            "tracestate: rojo=1",
        ],
        name: "GET /health",
        sent: &[("tracestate", None)],
        ..BASE
    },
    Case {
        title: "an uppercase trace id is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "version ff is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "an all-zero trace id is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "a future version is read as far as it is known",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ],
        name: "GET /health",
        continues: true,
        ..BASE
    },
    Case {
        title: "two traceparents are none",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "traceparent: 00-5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "baggage passes as it is",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "baggage: user=a%20b;p=1,x=y",
        ],
        name: "GET /health",
        sent: &[("baggage", Some("user=a%20b;p=1,x=y"))],
        ..BASE
    },
    Case {
        title: "an all-zero parent id is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "an uppercase parent id is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "uppercase flags are malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0B",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "a short trace id is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "a long parent id is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7a-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "version 00 has nothing behind its flags",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "a version of one digit is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "an empty traceparent is malformed",
        lines: &["GET /health HTTP/1.1", "Host: a", "traceparent: "],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "unknown flags are ignored",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09",
        ],
        name: "GET /health",
        continues: true,
        ..BASE
    },
    Case {
        title: "the header's name has no case",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "TraceParent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        continues: true,
        ..BASE
    },
    Case {
        title: "a tracestate without its traceparent is dropped",
        lines: &["GET /health HTTP/1.1", "Host: a", "tracestate: rojo=1"],
        name: "GET /health",
        sent: &[("tracestate", None)],
        ..BASE
    },
    Case {
        title: "two tracestates are one",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "tracestate: a=1",
            "tracestate: b=2",
        ],
        name: "GET /health",
        continues: true,
        sent: &[("tracestate", Some("a=1,b=2"))],
        ..BASE
    },
    Case {
        title: "a malformed tracestate is dropped, and its trace continued",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "tracestate: no equals sign",
        ],
        name: "GET /health",
        continues: true,
        sent: &[("tracestate", None)],
        ..BASE
    },
    Case {
        title: "a tracestate of more than 32 members loses the last",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "tracestate: k0=vvvvvvvvvvvvvvvvvvvv,k1=vvvvvvvvvvvvvvvvvvvv,k2=vvvvvvvvvvvvvvvvvvvv,k3=vvvvvvvvvvvvvvvvvvvv,k4=vvvvvvvvvvvvvvvvvvvv,k5=vvvvvvvvvvvvvvvvvvvv,k6=vvvvvvvvvvvvvvvvvvvv,k7=vvvvvvvvvvvvvvvvvvvv,k8=vvvvvvvvvvvvvvvvvvvv,k9=vvvvvvvvvvvvvvvvvvvv,k10=vvvvvvvvvvvvvvvvvvvv,k11=vvvvvvvvvvvvvvvvvvvv,k12=vvvvvvvvvvvvvvvvvvvv,k13=vvvvvvvvvvvvvvvvvvvv,k14=vvvvvvvvvvvvvvvvvvvv,k15=vvvvvvvvvvvvvvvvvvvv,k16=vvvvvvvvvvvvvvvvvvvv,k17=vvvvvvvvvvvvvvvvvvvv,k18=vvvvvvvvvvvvvvvvvvvv,k19=vvvvvvvvvvvvvvvvvvvv,k20=vvvvvvvvvvvvvvvvvvvv,k21=vvvvvvvvvvvvvvvvvvvv,k22=vvvvvvvvvvvvvvvvvvvv,k23=vvvvvvvvvvvvvvvvvvvv,k24=vvvvvvvvvvvvvvvvvvvv,k25=vvvvvvvvvvvvvvvvvvvv,k26=vvvvvvvvvvvvvvvvvvvv,k27=vvvvvvvvvvvvvvvvvvvv,k28=vvvvvvvvvvvvvvvvvvvv,k29=vvvvvvvvvvvvvvvvvvvv,k30=vvvvvvvvvvvvvvvvvvvv,k31=vvvvvvvvvvvvvvvvvvvv,k32=vvvvvvvvvvvvvvvvvvvv",
        ],
        name: "GET /health",
        continues: true,
        sent: &[(
            "tracestate",
            Some(
                "k0=vvvvvvvvvvvvvvvvvvvv,k1=vvvvvvvvvvvvvvvvvvvv,k2=vvvvvvvvvvvvvvvvvvvv,k3=vvvvvvvvvvvvvvvvvvvv,k4=vvvvvvvvvvvvvvvvvvvv,k5=vvvvvvvvvvvvvvvvvvvv,k6=vvvvvvvvvvvvvvvvvvvv,k7=vvvvvvvvvvvvvvvvvvvv,k8=vvvvvvvvvvvvvvvvvvvv,k9=vvvvvvvvvvvvvvvvvvvv,k10=vvvvvvvvvvvvvvvvvvvv,k11=vvvvvvvvvvvvvvvvvvvv,k12=vvvvvvvvvvvvvvvvvvvv,k13=vvvvvvvvvvvvvvvvvvvv,k14=vvvvvvvvvvvvvvvvvvvv,k15=vvvvvvvvvvvvvvvvvvvv,k16=vvvvvvvvvvvvvvvvvvvv,k17=vvvvvvvvvvvvvvvvvvvv,k18=vvvvvvvvvvvvvvvvvvvv,k19=vvvvvvvvvvvvvvvvvvvv,k20=vvvvvvvvvvvvvvvvvvvv,k21=vvvvvvvvvvvvvvvvvvvv,k22=vvvvvvvvvvvvvvvvvvvv,k23=vvvvvvvvvvvvvvvvvvvv,k24=vvvvvvvvvvvvvvvvvvvv,k25=vvvvvvvvvvvvvvvvvvvv,k26=vvvvvvvvvvvvvvvvvvvv,k27=vvvvvvvvvvvvvvvvvvvv,k28=vvvvvvvvvvvvvvvvvvvv,k29=vvvvvvvvvvvvvvvvvvvv,k30=vvvvvvvvvvvvvvvvvvvv,k31=vvvvvvvvvvvvvvvvvvvv",
            ),
        )],
        ..BASE
    },
    Case {
        title: "a tracestate of 32 members passes whole",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "tracestate: a=1,b=1,c=1,d=1,e=1,f=1,g=1,h=1,i=1,j=1,k=1,l=1,m=1,n=1,o=1,p=1,q=1,r=1,s=1,t=1,u=1,v=1,w=1,x=1,y=1,z=1,aa=1,ab=1,ac=1,ad=1,ae=1,af=1",
        ],
        name: "GET /health",
        continues: true,
        sent: &[(
            "tracestate",
            Some(
                "a=1,b=1,c=1,d=1,e=1,f=1,g=1,h=1,i=1,j=1,k=1,l=1,m=1,n=1,o=1,p=1,q=1,r=1,s=1,t=1,u=1,v=1,w=1,x=1,y=1,z=1,aa=1,ab=1,ac=1,ad=1,ae=1,af=1",
            ),
        )],
        ..BASE
    },
    Case {
        title: "an empty tracestate is none",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "tracestate: ",
        ],
        name: "GET /health",
        continues: true,
        sent: &[("tracestate", None)],
        ..BASE
    },
    Case {
        title: "a key with a tenant in a tracestate",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "tracestate: fw529a3039@dt=FfZ/4-:;,congo=t61",
        ],
        name: "GET /health",
        continues: true,
        sent: &[("tracestate", Some("fw529a3039@dt=FfZ/4-:;,congo=t61"))],
        ..BASE
    },
    Case {
        title: "white space around a traceparent is none of it",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: \t 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
        ],
        name: "GET /health",
        continues: true,
        ..BASE
    },
    Case {
        title: "what is no hexadecimal digit is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "parts that are not divided by dashes are malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "a future version has a dash behind its flags or nothing",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
        ],
        name: "GET /health",
        ..BASE
    },
];
