use super::*;

#[test]
fn what_refers_to_itself_stays_a_rule_and_all_else_becomes_a_terminal() {
    let gbnf = "# a list\nroot ::= list\nlist ::= item | \"(\" list \")\"\nitem ::= [a-z_]{1,4} sep?\nsep ::=\n  \",\" |\n  \"\\n\"\n";
    assert_eq!(
        to_lark(gbnf).unwrap(),
        "start: r0_root\n\
         r0_root: r1_list\n\
         r1_list: T2_ITEM | \"(\" r1_list \")\"\n\
         T2_ITEM: /[\\x{61}-\\x{7A}\\x{5F}]/{1,4} T3_SEP?\n\
         T3_SEP: \",\" | \"\\u000a\"\n"
    );
}

#[test]
fn escapes_and_classes_mean_the_same_characters() {
    let class = |class: &str| to_lark(&format!("root ::= {class}")).unwrap();
    for (gbnf, lark) in [
        (r#"[^"\\]"#, r"/[^\x{22}\x{5C}]/"),
        (r"[\]\-a-]", r"/[\x{5D}\x{2D}\x{61}\x{2D}]/"),
        (r"[\x41-\u00e9\U0001F600]", r"/[\x{41}-\x{E9}\x{1F600}]/"),
        (r#""a\"b\\c/é""#, r#""a\"b\\c/é""#),
        (r#""\x41#" # a comment"#, r#""A#""#),
    ] {
        assert_eq!(class(gbnf), format!("start: T0_ROOT\nT0_ROOT: {lark}\n"));
    }
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (gbnf, problem) in [
        ("a ::= \"b\"", "there is no rule 'root'"),
        ("root ::=\n  a", "line 2: there is no rule 'a'"),
        ("root ::= \"a", "line 1: a quote is not closed"),
        ("root ::= [a", "line 1: a bracket is not closed"),
        ("root ::= []", "line 1: [] is empty"),
        (
            "root ::= (\"a\"\nb ::= \"c\"",
            "line 1: a parenthesis is not closed",
        ),
        (
            "root ::= \"a\" )",
            "line 1: a rule begins with its name and ::=",
        ),
        ("root ::= | *", "line 1: * repeats nothing"),
        ("root ::= \"a\"{x}", "line 1: {x} is not {m}, {m,} or {m,n}"),
        ("root ::= \"\\q\"", "line 1: \\q is not known"),
        (
            "root ::= \"\\ud800\"",
            "line 1: \\u needs 4 digits of a character",
        ),
        (
            "root ::= \"a\"\nroot ::= \"b\"",
            "line 2: there are two rules 'root'",
        ),
        ("root ::= ::= \"b\"", "line 1: ::= follows no name"),
        ("root ::= <a>", "line 1: '<' is not understood"),
    ] {
        assert_eq!(to_lark(gbnf), Err(problem.to_owned()), "{gbnf}");
    }
}

#[test]
fn what_nests_too_deep_is_refused_however_deep_it_is() {
    let nested = |depth: usize| {
        let (open, close) = ("(".repeat(depth), ")".repeat(depth));
        to_lark(&format!("root ::= {open}\"a\"{close}"))
    };
    assert!(nested(MAX_DEPTH).is_ok());
    let error = nested(30_000).unwrap_err();
    assert_eq!(error, "line 1: parentheses nest more than 256 deep");
    let chain = |length: usize| {
        let rules = (0..length).map(|at| format!("r{at} ::= r{}\n", at + 1));
        let rules: String = rules.collect();
        to_lark(&format!("root ::= r0\n{rules}r{length} ::= \"a\""))
    };
    assert!(chain(100).is_ok());
    let error = chain(5_000).unwrap_err();
    assert!(
        error.contains("is more than 256 rules and parentheses deep"),
        "{error}"
    );
}

#[test]
fn a_grammar_is_known_by_its_rules() {
    assert!(is_gbnf("# a comment\n\n  root::= \"a\""));
    assert!(is_gbnf("?start: x\nroot ::= \"a\""));
    assert!(!is_gbnf("start: \"a ::= b\""));
}
