//! Mistakes, and that each is said with its place, its path and what was expected.

use super::{Format, decode, kinds};

fn error(format: Format, input: impl AsRef<[u8]>) -> String {
    match decode(format, &kinds(), &input) {
        Ok(message) => panic!("{} was read as {}", String::from_utf8_lossy(input.as_ref()), super::json(&message)),
        Err(error) => error.to_string(),
    }
}

fn expect(format: Format, table: &[(&str, &str)]) {
    let wrong: Vec<_> = table
        .iter()
        .map(|(input, expected)| (input, error(format, input), *expected))
        .filter(|(_, found, expected)| found != expected)
        .map(|(input, found, expected)| format!("{input:?}\n   found: {found}\nexpected: {expected}\n"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn json() {
    expect(
        Format::Json,
        &[
            ("{\"fInt32\": }", "line 1, column 12: expected a JSON value, found '}'"),
            ("{\n  \"fInt32\": 1,\n}", "line 3, column 1: expected a name in double quotes, found '}'"),
            ("{fInt32: 1}", "line 1, column 2: expected a name in double quotes, found 'f'"),
            ("{\"fInt32\" 1}", "line 1, column 11: expected ':' after the name, found '1'"),
            ("{\"rInt32\": [1 2]}", "line 1, column 15: expected ',' or ']', found '2'"),
            ("{\"rInt32\": [1, 2}", "line 1, column 17: expected ',' or ']', found '}'"),
            ("{\"fInt32\": 01}", "line 1, column 13: expected the end of the number, found '1'"),
            ("{\"fInt32\": 1.}", "line 1, column 14: expected a digit, found '}'"),
            ("{\"fInt32\": tru}", "line 1, column 12: expected a JSON value, found 't'"),
            ("{\"fString\": \"\\x\"}", "line 1, column 14: unknown escape sequence"),
            ("{\"fString\": \"\\ud800\"}", "line 1, column 14: half of a surrogate pair"),
            ("{\"fString\": \"\n\"}", "line 1, column 14: a control character in a string must be escaped"),
            ("{\"fString\": \"x", "line 1, column 15: expected '\"' at the end of the string, found the end"),
            ("{", "line 1, column 2: expected a name in double quotes, found the end"),
            (" }", "line 1, column 2: expected a JSON value, found '}'"),
            ("[]", "line 1, column 1: expected an object (dialback.kinds.v1.Kinds), found a list"),
            ("5", "line 1, column 1: expected an object (dialback.kinds.v1.Kinds), found the number 5"),
            (
                "{\"ünïcödé\": 1, \"x\": 2}",
                "line 1, column 2: ünïcödé: dialback.kinds.v1.Kinds has no field with this name",
            ),
            (
                "{\"fNested\": {\"children\": [{}, {\"txt\": 1}]}}",
                "line 1, column 32: fNested.children[1].txt: dialback.kinds.v1.Kinds.Nested has no field with this name, did you mean text?",
            ),
            (
                "{\"fInt32\": \"x\"}",
                "line 1, column 12: fInt32: expected an integer from -2147483648 to 2147483647, found the string \"x\"",
            ),
            (
                "{\"fInt32\": 2147483648}",
                "line 1, column 12: fInt32: expected an integer from -2147483648 to 2147483647, found the number 2147483648",
            ),
            (
                "{\"fInt32\": 1.5}",
                "line 1, column 12: fInt32: expected an integer from -2147483648 to 2147483647, found the number 1.5",
            ),
            (
                "{\"fInt32\": 1e999999999}",
                "line 1, column 12: fInt32: expected an integer from -2147483648 to 2147483647, found the number 1e999999999",
            ),
            (
                "{\"fUint64\": -1}",
                "line 1, column 13: fUint64: expected an integer from 0 to 18446744073709551615, found the number -1",
            ),
            (
                "{\"fInt64\": true}",
                "line 1, column 12: fInt64: expected an integer from -9223372036854775808 to 9223372036854775807, found true",
            ),
            ("{\"fDouble\": 1e999}", "line 1, column 13: fDouble: expected a number (double), found the number 1e999"),
            ("{\"fFloat\": 1e39}", "line 1, column 12: fFloat: expected a number (float), found the number 1e39"),
            ("{\"fBool\": \"true\"}", "line 1, column 11: fBool: expected true or false, found the string \"true\""),
            ("{\"fString\": 1}", "line 1, column 13: fString: expected a string, found the number 1"),
            ("{\"fString\": {}}", "line 1, column 13: fString: expected a string, found an object"),
            ("{\"fBytes\": \"a\"}", "line 1, column 12: fBytes: expected bytes as base64, found the string \"a\""),
            (
                "{\"fBytes\": \"a*bc\"}",
                "line 1, column 12: fBytes: expected bytes as base64, found the string \"a*bc\"",
            ),
            (
                "{\"fColor\": \"GREAN\"}",
                "line 1, column 12: fColor: the enum dialback.kinds.v1.Color has no value \"GREAN\", did you mean GREEN?",
            ),
            (
                "{\"fNested\": []}",
                "line 1, column 13: fNested: expected an object (dialback.kinds.v1.Kinds.Nested), found a list",
            ),
            (
                "{\"rInt32\": 1}",
                "line 1, column 12: rInt32: expected a list, each of it an integer from -2147483648 to 2147483647, found the number 1",
            ),
            (
                "{\"rInt32\": [1, null]}",
                "line 1, column 16: rInt32[1]: expected an integer from -2147483648 to 2147483647, found null",
            ),
            ("{\"mInt32\": []}", "line 1, column 12: mInt32: expected an object (map), found a list"),
            (
                "{\"mInt32\": {\"x\": \"y\"}}",
                "line 1, column 13: mInt32[\"x\"]: expected an integer from -2147483648 to 2147483647, found \"x\"",
            ),
            ("{\"mInt32\": {\"1\": \"y\", \"1\": \"z\"}}", "line 1, column 23: mInt32[\"1\"]: given twice"),
            ("{\"fInt32\": 1, \"fInt32\": 2}", "line 1, column 15: fInt32: given twice"),
            ("{\"fInt32\": 1, \"f_int32\": 2}", "line 1, column 15: f_int32: given twice"),
            (
                "{\"cInt32\": 1, \"cString\": \"x\"}",
                "line 1, column 26: cString: cInt32 is given too, and the oneof choice holds one of them",
            ),
            (
                "{\"wTimestamp\": \"2006-02-30T00:00:00Z\"}",
                "line 1, column 16: wTimestamp: expected a time such as 2006-01-02T15:04:05.000Z, found \"2006-02-30T00:00:00Z\"",
            ),
            (
                "{\"wTimestamp\": \"0000-12-31T00:00:00Z\"}",
                "line 1, column 16: wTimestamp: expected a time such as 2006-01-02T15:04:05.000Z, found \"0000-12-31T00:00:00Z\"",
            ),
            (
                "{\"wTimestamp\": 5}",
                "line 1, column 16: wTimestamp: expected a time such as \"2006-01-02T15:04:05.000Z\", found the number 5",
            ),
            (
                "{\"wDuration\": \"5\"}",
                "line 1, column 15: wDuration: expected a duration in seconds such as 1.5s, found \"5\"",
            ),
            (
                "{\"wDuration\": \"315576000001s\"}",
                "line 1, column 15: wDuration: expected a duration in seconds such as 1.5s, found \"315576000001s\"",
            ),
            (
                "{\"wFieldMask\": \"a_b\"}",
                "line 1, column 16: wFieldMask: expected a field mask such as user.name,createdAt, found \"a_b\"",
            ),
            (
                "{\"wAny\": {\"x\": 1}}",
                "line 1, column 11: wAny: expected \"@type\" beside the fields of a google.protobuf.Any, found none",
            ),
            (
                "{\"wAny\": {\"@type\": \"x/dialback.kinds.v1.Kind\"}}",
                "line 1, column 20: wAny.@type: no message type \"dialback.kinds.v1.Kind\" is known here, did you mean dialback.kinds.v1.Kinds or dialback.kinds.v1.Kinds.Nested?",
            ),
        ],
    );
}

#[test]
fn yaml() {
    expect(
        Format::Yaml,
        &[
            (
                "f_int32: 1\nf_strin: x\n",
                "line 2, column 1: f_strin: dialback.kinds.v1.Kinds has no field with this name, did you mean fString, cString or mString?",
            ),
            (
                "f_int32: no\n",
                "line 1, column 10: f_int32: expected an integer from -2147483648 to 2147483647, found the string \"no\"",
            ),
            (
                "r_nested:\n- text: x\n- number: 1.5\n",
                "line 3, column 11: r_nested[1].number: expected an integer from -2147483648 to 2147483647, found the number 1.5",
            ),
            ("f_bool: yes\n", "line 1, column 9: f_bool: expected true or false, found the string \"yes\""),
            (
                "c_int32: 1\nc_string: x\n",
                "line 2, column 11: c_string: cInt32 is given too, and the oneof choice holds one of them",
            ),
            ("- 1\n", "line 1, column 1: expected an object (dialback.kinds.v1.Kinds), found a list"),
            ("f_nested: &a\n  children: [*a]\n", "line 2, column 14: an anchor (&) that refers to itself"),
            ("~: 1\n", "line 1, column 1: a name that is null: if it is one, put it into quotes"),
            ("[a]: 1\n", "line 1, column 1: a name that is a list or an object"),
            ("{a: b}: 1\n", "line 1, column 1: a name that is a list or an object"),
            (&"[".repeat(300), "line 1, column 201: nested deeper than 200"),
            (
                &format!("a: &a x\nb: [{}]", "*a, ".repeat(60_000)),
                "line 2, column 200005: too many anchors or aliases (& and *)",
            ),
            ("f_string: [\n", "line 1, column 11: unclosed bracket '['"),
            ("f_string: 'x\n", "line 2, column 1: invalid indentation in multiline quoted scalar"),
            ("f_int32: 1\nf_int32: 2\n", "line 2, column 1: duplicate mapping key: f_int32"),
            ("f_int32: 1\n f_int64: 2\n", "line 2, column 9: mapping values are not allowed in this context"),
            ("f_string: *nowhere\n", "line 1, column 11: alias references unknown anchor"),
            ("f_string: \"\\q\"\n", "line 1, column 11: while parsing a quoted scalar, found unknown escape character"),
        ],
    );
}

#[test]
fn xml() {
    expect(
        Format::Xml,
        &[
            (
                "<Kinds>\n  <f_int32>x</f_int32>\n</Kinds>",
                "line 2, column 3: f_int32: expected an integer from -2147483648 to 2147483647, found \"x\"",
            ),
            (
                "<Kinds><f_int>1</f_int></Kinds>",
                "line 1, column 8: f_int: dialback.kinds.v1.Kinds has no field with this name, did you mean fInt32 or fInt64?",
            ),
            ("<Kind/>", "line 1, column 1: expected the element <dialback.kinds.v1.Kinds>, found <Kind>"),
            (
                "<Kinds><f_nested><number>1</number><number>2</number></f_nested></Kinds>",
                "line 1, column 36: f_nested.number: given twice",
            ),
            (
                "<Kinds><c_int32>1</c_int32><c_string/></Kinds>",
                "line 1, column 28: c_string: cInt32 is given too, and the oneof choice holds one of them",
            ),
            (
                "<Kinds>text</Kinds>",
                "line 1, column 1: expected the fields of dialback.kinds.v1.Kinds, found the text \"text\"",
            ),
            (
                "<Kinds><f_string><b/></f_string></Kinds>",
                "line 1, column 8: f_string: expected text, found the element <b>",
            ),
            (
                "<Kinds><f_string lang='x'/></Kinds>",
                "line 1, column 8: f_string: expected only encoding, found the attribute lang",
            ),
            (
                "<Kinds><f_int32 lang='x'>1</f_int32></Kinds>",
                "line 1, column 8: f_int32: expected no attributes, found the attribute lang",
            ),
            (
                "<Kinds><f_string encoding='base64'>*</f_string></Kinds>",
                "line 1, column 8: f_string: expected a string as base64, found \"*\"",
            ),
            ("<Kinds><m_text>1</m_text></Kinds>", "line 1, column 8: m_text: expected the attribute key, found none"),
            ("<Kinds><m_text key='a'/><m_text key='a'/></Kinds>", "line 1, column 25: m_text[\"a\"]: given twice"),
            ("<Kinds><f_bytes>*</f_bytes></Kinds>", "line 1, column 8: f_bytes: expected bytes as base64, found \"*\""),
            (
                "<Kinds><w_struct>{</w_struct></Kinds>",
                "line 1, column 8: w_struct: expected JSON, found \"{\": expected a name in double quotes, found the end",
            ),
            (
                "<Kinds><w_any><seconds>1</seconds></w_any></Kinds>",
                "line 1, column 8: w_any: expected the attribute type of a google.protobuf.Any, found none",
            ),
            (
                "<Kinds><w_timestamp>now</w_timestamp></Kinds>",
                "line 1, column 8: w_timestamp: expected a time such as 2006-01-02T15:04:05.000Z, found \"now\"",
            ),
            ("<Kinds>&nbsp;</Kinds>", "line 1, column 8: the entity &nbsp; is not known"),
            ("<!DOCTYPE x [<!ENTITY a 'b'>]><Kinds/>", "line 1, column 1: document types are not read"),
            ("<Kinds><!DOCTYPE x></Kinds>", "line 1, column 8: document types are not read"),
            ("x<Kinds/>", "line 1, column 1: expected an element, found text"),
            ("</Kinds>", "line 1, column 1: an end tag without a start tag"),
            ("<Kinds><f_string>", "line 1, column 18: the element <f_string> is not closed"),
            (
                "<Kinds><f_string></Kinds></f_string>",
                "line 1, column 18: ill-formed document: expected `</f_string>`, but `</Kinds>` was found",
            ),
            ("<Kinds><f_string x=1/></Kinds>", "line 1, column 8: attribute value must be enclosed in `\"` or `'`"),
            ("<Kinds a='1' a='2'/>", "line 1, column 1: the attribute a is given twice"),
        ],
    );
}

#[test]
fn text() {
    expect(
        Format::Text,
        &[
            (
                "f_int32: 1\nf_nested { txt: 1 }",
                "line 2, column 12: f_nested.txt: dialback.kinds.v1.Kinds.Nested has no field with this name, did you mean text?",
            ),
            ("f_int32: x", "line 1, column 10: f_int32: expected an integer from -2147483648 to 2147483647, found x"),
            (
                "f_int32: 99999999999",
                "line 1, column 10: f_int32: expected an integer from -2147483648 to 2147483647, found 99999999999",
            ),
            ("f_uint32: -1", "line 1, column 11: f_uint32: expected an integer from 0 to 4294967295, found -1"),
            ("f_int32 1", "line 1, column 9: f_int32: expected ':', found '1'"),
            ("f_int32: 1 f_int32: 2", "line 1, column 12: f_int32: given twice"),
            (
                "c_int32: 1 c_string: \"x\"",
                "line 1, column 12: c_string: cInt32 is given too, and the oneof choice holds one of them",
            ),
            ("f_string: x", "line 1, column 11: f_string: expected a string in quotes, found 'x'"),
            (
                "f_string: \"x",
                "line 1, column 13: f_string: expected \" at the end of the string, found the end of the line",
            ),
            ("f_string: \"\\q\"", "line 1, column 12: f_string: expected an escape sequence, found \\q"),
            ("f_string: \"\\xff\"", "line 1, column 11: f_string: expected a string in UTF-8, found other bytes"),
            ("f_bytes: \"\\777\"", "line 1, column 11: f_bytes: expected an escape sequence, found \\7"),
            ("f_nested: 1", "line 1, column 11: f_nested: expected '{' (dialback.kinds.v1.Kinds.Nested), found '1'"),
            ("f_nested {", "line 1, column 11: f_nested: expected a field or '}', found the end"),
            ("f_nested < }", "line 1, column 12: f_nested: expected the name of a field, found '}'"),
            ("r_int32: [1, 2", "line 1, column 15: r_int32: expected ',' or ']', found the end"),
            ("m_text { key: \"a\" } m_text { key: \"a\" }", "line 1, column 28: m_text[\"a\"]: given twice"),
            ("f_color: BLUE", "line 1, column 10: f_color: the enum dialback.kinds.v1.Color has no value \"BLUE\""),
            ("[no.such]: 1", "line 1, column 1: no.such: dialback.kinds.v1.Kinds has no field with this name"),
            ("w_any { [x/y] {} }", "line 1, column 9: w_any.[x/y]: no message type \"y\" is known here"),
            ("}", "line 1, column 1: expected the name of a field, found '}'"),
        ],
    );
}

#[test]
fn bytes() {
    for (input, expected) in [
        (&[0x80_u8, 0x80][..], "byte 2: the input ends in the length of a message"),
        (&[0xFF; 12], "byte 0: expected the length of a message as a varint"),
        (&[5, 1], "byte 2: the input ends after 1 bytes of a message of 5"),
        (&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F], "byte 0: a message of 4294967295 bytes is larger than the limit of 64 MiB"),
    ] {
        assert_eq!(error(Format::Binary, input), expected);
    }
    assert!(error(Format::Binary, [2, 0x0F, 0]).starts_with("byte 1: "));
}

#[test]
fn what_is_not_utf8() {
    for (format, input) in [
        (Format::Json, &b"{\"fString\":\n \"\xff\"}"[..]),
        (Format::Yaml, b"f_int32: 1\n\"\xff\": 1"),
        (Format::Xml, b"<Kinds>\n<\xff/></Kinds>"),
        (Format::Text, b"f_int32: 1\n \xff"),
    ] {
        let error = error(format, input);
        assert!(error.starts_with("line 2, column ") && error.ends_with(": invalid UTF-8"), "{error}");
    }
}
