//! What messages look like, and what else is read.

use super::{Encoder, Format, decode, descriptor, encode, json, kinds, read};

#[test]
fn json_is_what_grpcurl_prints() {
    let message = read(
        Format::Json,
        r#"{"f_int64": -1, "f_uint64": "18446744073709551615", "f_float": 0.1, "f_double": 1000000, "r_double": [1e21, 1e-7, "NaN", "-Infinity"],
            "f_bytes": "_-8", "f_color": 2, "r_color": ["no", 17], "f_string": "<a> & \u2028 \u0007 ä", "f_nested": {},
            "m_int32": {"10": "b", "9": "a", "-1": "c"}, "m_bool": {"true": 1, "false": 2}, "c_null": null,
            "w_timestamp": "2006-01-02T15:04:05.120+01:00", "w_duration": "-0.000001s", "w_field_mask": "a.bC,d", "w_double": 1000000,
            "w_uint64": "1", "w_value": [null, {"z": 1, "a": "x"}], "w_any": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"},
            "r_any": [{"@type": "x/dialback.kinds.v1.Kinds.Nested", "number": 1, "text": "t"}, {}], "someOtherName": "n", "odd name <&>": "o"}"#,
    );
    let expected = r#"{
  "fDouble": 1e+06,
  "fFloat": 0.1,
  "fInt64": "-1",
  "fUint64": "18446744073709551615",
  "fString": "\u003ca\u003e \u0026 \u2028 \u0007 ä",
  "fBytes": "/+8=",
  "fColor": "GREEN",
  "fNested": {},
  "rDouble": [
    1e+21,
    1e-07,
    "NaN",
    "-Infinity"
  ],
  "rColor": [
    "no",
    17
  ],
  "mInt32": {
    "-1": "c",
    "9": "a",
    "10": "b"
  },
  "mBool": {
    "false": 2,
    "true": 1
  },
  "cNull": "NULL_VALUE",
  "wAny": {
    "@type": "type.googleapis.com/google.protobuf.Duration",
    "value": "1s"
  },
  "wTimestamp": "2006-01-02T14:04:05.120Z",
  "wDuration": "-0.000001s",
  "wFieldMask": {
    "paths": [
      "a.b_c",
      "d"
    ]
  },
  "wValue": [
    null,
    {
      "a": "x",
      "z": 1
    }
  ],
  "wDouble": 1000000,
  "wUint64": "1",
  "rAny": [
    {
      "@type": "x/dialback.kinds.v1.Kinds.Nested",
      "number": 1,
      "text": "t"
    },
    {}
  ],
  "someOtherName": "n",
  "odd name \u003c\u0026\u003e": "o"
}
"#;
    assert_eq!(encode(Format::Json, &message), expected);
}

#[test]
fn defaults_are_those_of_grpcurl() {
    let legacy = descriptor("dialback.kinds.legacy.Legacy");
    let message = decode(Format::Json, &legacy, r#"{"name": "x"}"#).unwrap();
    let encode = |format| String::from_utf8(Encoder::new(format, true).encode(&message).unwrap()).unwrap();
    let expected = r#"{"name":"x","count":7,"level":"HIGH","plain":[],"tight":[],"inner":null,"part":[]}"#;
    assert_eq!(encode(Format::Ndjson).trim_end(), expected);
    assert_eq!(encode(Format::Text), "name: \"x\"\ncount: 7\nlevel: HIGH\n");
}

/// A float is one in every format: with the digits that a float has.
#[test]
fn floats_are_no_doubles() {
    let message = read(
        Format::Json,
        r#"{"fFloat": 0.1, "rFloat": [3.4028235e38, 1.4e-45, 16777216], "mSint32": {"1": 0.3}, "wFloat": 0.7}"#,
    );
    for format in [Format::Json, Format::Yaml, Format::Xml, Format::Text] {
        let text = encode(format, &message);
        assert!(
            !text.contains("0.10000000149") && !text.contains("0.30000001") && !text.contains("0.699999"),
            "{text}"
        );
        for digits in ["0.1", "3.4028235e", "0.3", "0.7"] {
            assert!(text.contains(digits), "{text}");
        }
    }
}

#[test]
fn yaml_is_easy_to_read() {
    let message = read(
        Format::Json,
        r#"{"fString": "no", "rString": ["1e3", "0x1", "ann", "", "a: b"], "fInt64": "5", "fFloat": 0.1, "rNested": [{"text": "a\nb\n", "number": 1}, {}],
            "mText": {"y": "z", "b": "~"}, "wTimestamp": "2006-01-02T15:04:05Z", "fColor": "no", "fNested": {}}"#,
    );
    let expected = "\
fFloat: 0.1
fInt64: \"5\"
fString: \"no\"
fColor: \"no\"
fNested: {}
rString:
- \"1e3\"
- \"0x1\"
- ann
- \"\"
- \"a: b\"
rNested:
- text: |
    a
    b
  number: 1
- {}
mText:
  b: \"~\"
  \"y\": z
wTimestamp: \"2006-01-02T15:04:05Z\"
";
    assert_eq!(encode(Format::Yaml, &message), expected);
}

#[test]
fn yaml_of_other_people_is_read() {
    let message = read(
        Format::Yaml,
        "%YAML 1.2
---
# a comment
f_string: no # another
r_string: [1.10, 0x1, 010, 1e3, yes, true, 2001-01-01, ~x, 'it''s', \"\\u00e4\"]
fInt32: 0x1F
fInt64: 9007199254740993
fUint64: 18446744073709551615
fDouble: .inf
r_double: [1, .5, -.inf, .nan, 1e3]
fFloat: 0.1
f_color: no
r_color: [RED, 2]
f_nested: &base
  text: >
    folded
    text
  number: 1
r_nested:
  - *base
  - <<: *base
    number: 2
  - {text: |-
      x, number: 3}
m_int32: {1: one, -2: two}
m_bool: {true: 1}
w_timestamp: 2006-01-02T15:04:05Z
w_value: {a: no, b: 1, c: ~, d: true}
f_bytes: !!binary AP8=
? o_string
: null
...
"
        .replace("  - {text: |-\n      x, number: 3}\n", "  - {text: x, number: 3}\n")
        .as_str(),
    );
    let expected = concat!(
        r#"{"fDouble":"Infinity","fFloat":0.1,"fInt32":31,"fInt64":"9007199254740993","fUint64":"18446744073709551615","fString":"no","#,
        r#""fBytes":"AP8=","fColor":"no","fNested":{"text":"folded text\n","number":1},"rDouble":[1,0.5,"-Infinity","NaN",1000],"#,
        r#""rString":["1.10","0x1","010","1e3","yes","true","2001-01-01","~x","it's","ä"],"rColor":["RED","GREEN"],"#,
        r#""rNested":[{"text":"folded text\n","number":1},{"text":"folded text\n","number":2},{"text":"x","number":3}],"#,
        r#""mInt32":{"-2":"two","1":"one"},"mBool":{"true":1},"wTimestamp":"2006-01-02T15:04:05Z","wValue":{"a":"no","b":1,"c":null,"d":true}}"#,
    );
    assert_eq!(json(&message), expected);
}

#[test]
fn xml_is_as_it_is_documented() {
    let message = read(
        Format::Json,
        r#"{"fUint64": "18446744073709551615", "fColor": "GREEN", "fBytes": "iVBORw==", "fDouble": "NaN", "fNested": {}, "oString": "",
            "rNested": [{"text": "pen"}, {"text": " <&>\r\n "}], "mText": {"pen": "3", "a\"\n": "\u0000"}, "wTimestamp": "2006-01-02T15:04:05Z",
            "wStruct": {"color": ["red", null]}, "wAny": {"@type": "type.googleapis.com/dialback.kinds.v1.Kinds.Nested", "text": "soon"},
            "wString": "\u0001", "rAny": [{"@type": "x/y", "@value": "AQ=="}, {}, {"@type": "x/google.protobuf.Any", "value": {"@type": "x/google.protobuf.Empty", "value": {}}}]}"#,
    );
    let expected = r#"<dialback.kinds.v1.Kinds>
  <f_double>NaN</f_double>
  <f_uint64>18446744073709551615</f_uint64>
  <f_bytes>iVBORw==</f_bytes>
  <f_color>GREEN</f_color>
  <f_nested/>
  <o_string/>
  <r_nested>
    <text>pen</text>
  </r_nested>
  <r_nested>
    <text> &lt;&amp;&gt;&#13;
 </text>
  </r_nested>
  <m_text key="a&quot;&#10;" encoding="base64">AA==</m_text>
  <m_text key="pen">3</m_text>
  <w_any type="type.googleapis.com/dialback.kinds.v1.Kinds.Nested">
    <text>soon</text>
  </w_any>
  <w_timestamp>2006-01-02T15:04:05Z</w_timestamp>
  <w_struct>{"color":["red",null]}</w_struct>
  <w_string encoding="base64">AQ==</w_string>
  <r_any type="x/y" value="AQ=="/>
  <r_any/>
  <r_any type="x/google.protobuf.Any">
    <value type="x/google.protobuf.Empty"/>
  </r_any>
</dialback.kinds.v1.Kinds>
"#;
    assert_eq!(encode(Format::Xml, &message), expected);
}

#[test]
fn xml_of_other_people_is_read() {
    let message = read(
        Format::Xml,
        "<?xml version='1.0' encoding='UTF-8' standalone=\"yes\"?>
<!-- a > comment --><?target <x> ?>
<Kinds xmlns='urn:x' xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">
  <fInt32> 5
  </fInt32><f_string> a<![CDATA[<b>&]]><!-- no -->&#x41;&#10;&apos;\r\n </f_string>
  <f_color>2</f_color>
  <f_bytes>
    AP
    8=
  </f_bytes>
  <o_string></o_string>
</Kinds>",
    );
    let expected =
        r#"{"fInt32":5,"fString":" a\u003cb\u003e\u0026A\n'\n ","fBytes":"AP8=","fColor":"GREEN","oString":""}"#;
    assert_eq!(json(&message), expected);
}

#[test]
fn text_is_what_protobuf_prints() {
    let legacy = descriptor("dialback.kinds.legacy.Legacy");
    let message = decode(
        Format::Json,
        &legacy,
        r#"{"name": "a\n\"ä\u0001", "level": "LOW", "tight": [1, 2], "inner": {"text": "x"}, "part": [{"number": 1}, {}],
            "[dialback.kinds.legacy.note]": "n", "[dialback.kinds.legacy.marks]": [3], "[dialback.kinds.legacy.Holder.scoped]": "HIGH"}"#,
    )
    .unwrap();
    let expected = r#"name: "a\n\"ä\001"
level: LOW
tight: 1
tight: 2
Inner {
  text: "x"
}
Part {
  number: 1
}
Part {}
[dialback.kinds.legacy.note]: "n"
[dialback.kinds.legacy.marks]: 3
[dialback.kinds.legacy.Holder.scoped]: HIGH
"#;
    assert_eq!(encode(Format::Text, &message), expected);
    let any = read(
        Format::Json,
        r#"{"fBytes": "AP8", "mText": {"b": "2", "a": "1"}, "rDouble": ["NaN", "-Infinity", 1], "wTimestamp": "1970-01-01T00:00:01Z",
            "wAny": {"@type": "x.com/dialback.kinds.v1.Kinds.Nested", "text": "t"}}"#,
    );
    let expected = r#"f_bytes: "\000\377"
r_double: nan
r_double: -inf
r_double: 1
m_text {
  key: "a"
  value: "1"
}
m_text {
  key: "b"
  value: "2"
}
w_any {
  [x.com/dialback.kinds.v1.Kinds.Nested] {
    text: "t"
  }
}
w_timestamp {
  seconds: 1
}
"#;
    assert_eq!(encode(Format::Text, &any), expected);
}

#[test]
fn text_of_other_people_is_read() {
    let message = read(
        Format::Text,
        r#"# a comment
f_int32: -0x1F, f_int64: 010; f_double: -inf
f_float: 1.5f f_bool: t f_string: "a" 'b\x41\u00e4\101' # more
f_bytes: "\377\xfe"
f_color: -1
r_int32: [1, 2] r_int32: 3
r_double: [1e+3, nan, .5, -2]
f_nested < text: "x" children: { number: 1 } children { } >
m_int32: [{key: 1 value: "a"}, {key: 2}] m_bool { value: 3 key: true }
w_any: { [ type.googleapis.com / google.protobuf.Duration ] { seconds: 1 } }
"#,
    );
    let expected = concat!(
        r#"{"fDouble":"-Infinity","fFloat":1.5,"fInt32":-31,"fInt64":"8","fBool":true,"fString":"abAäA","fBytes":"//4=","fColor":"NEGATIVE","#,
        r#""fNested":{"text":"x","children":[{"number":1},{}]},"rDouble":[1000,"NaN",0.5,-2],"rInt32":[1,2,3],"#,
        r#""mInt32":{"1":"a","2":""},"mBool":{"true":3},"wAny":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1s"}}"#,
    );
    assert_eq!(json(&message), expected);
}

#[test]
fn json_of_other_people_is_read() {
    for (input, expected) in [
        (r#"{"fInt32": 1.0, "fInt64": 1e3, "fUint32": "7"}"#, r#"{"fInt32":1,"fInt64":"1000","fUint32":7}"#),
        (
            r#"{"fInt32": null, "rInt32": null, "wAny": null, "wValue": null, "cNull": null}"#,
            r#"{"cNull":"NULL_VALUE","wValue":null}"#,
        ),
        (r#"{"fDouble": "1.5", "fFloat": "-Infinity"}"#, r#"{"fDouble":1.5,"fFloat":"-Infinity"}"#),
        (r#"{"fColor": "1", "fString": "\ud83d\ude00\/\b"}"#, r#"{"fString":"😀/\b","fColor":"RED"}"#),
        (r#"{"some_name": "x", "wEmpty": {}, "cEmpty": {}}"#, r#"{"cEmpty":{},"wEmpty":{},"someOtherName":"x"}"#),
        (
            r#"{"wTimestamp": {"seconds": 1}, "wDuration": {"nanos": 5}}"#,
            r#"{"wTimestamp":"1970-01-01T00:00:01Z","wDuration":"0.000000005s"}"#,
        ),
        (
            r#"{"wTimestamp": {"nanos": -5}, "wFieldMask": {"paths": ["Foo"]}}"#,
            r#"{"wTimestamp":{"nanos":-5},"wFieldMask":{"paths":["Foo"]}}"#,
        ),
    ] {
        assert_eq!(json(&read(Format::Json, input)), expected, "{input}");
    }
}

#[test]
fn a_file_says_its_format_by_its_name() {
    for (name, format) in [
        ("a.json", Some(Format::Json)),
        ("a.jsonl", Some(Format::Ndjson)),
        ("a.b.YML", Some(Format::Yaml)),
        ("a.xml", Some(Format::Xml)),
        ("a.textproto", Some(Format::Text)),
        ("a.pb", Some(Format::Binary)),
        ("json", None),
        ("a.proto", None),
    ] {
        assert_eq!(Format::of_path(name.as_ref()), format, "{name}");
    }
}

/// Binary messages are as other libraries write them to a stream.
#[test]
fn binary_messages_have_their_length_before_them() {
    let message = decode(Format::Json, &kinds(), r#"{"fInt32": 5}"#).unwrap();
    assert_eq!(encode(Format::Binary, &message), "\u{2}\u{18}\u{5}");
}
