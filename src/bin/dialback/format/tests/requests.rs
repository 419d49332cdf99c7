//! Requests that are made here: samples, and fields from the command line.

use super::{Format, decode, descriptor, formats, json, kinds};
use crate::format::{Encoder, sample, set};
use prost_reflect::MessageDescriptor;

fn sampled(descriptor: &MessageDescriptor, format: Format) -> Vec<u8> {
    sample(descriptor, &mut Encoder::new(format, false)).unwrap()
}

#[test]
fn a_sample_is_a_request_in_every_format() {
    for name in
        ["dialback.kinds.v1.Kinds", "dialback.kinds.legacy.Legacy", "google.protobuf.Any", "google.protobuf.Value"]
    {
        let descriptor = descriptor(name);
        let expected = json(&decode(Format::Json, &descriptor, sampled(&descriptor, Format::Json)).unwrap());
        for &format in formats() {
            let message = decode(format, &descriptor, sampled(&descriptor, format)).unwrap();
            assert_eq!(json(&message), expected, "{format:?}");
        }
    }
}

#[test]
fn a_sample_has_something_in_every_field() {
    let message = decode(Format::Json, &kinds(), sampled(&kinds(), Format::Json)).unwrap();
    for field in kinds().fields() {
        // The type itself begins again there, and of a oneof the first member is set.
        let ends = ["f_self", "m_string"].contains(&field.name());
        let other = field.containing_oneof().is_some_and(|oneof| oneof.fields().next() != Some(field.clone()));
        assert_eq!(message.has_field(&field), !ends && !other, "{}", field.name());
    }
}

#[test]
fn a_sample_reads_well() {
    let nested = descriptor("dialback.kinds.v1.Kinds.Nested");
    let text = |format| String::from_utf8(sampled(&nested, format)).unwrap();
    assert_eq!(text(Format::Json), "{\n  \"text\": \"text\",\n  \"number\": 1\n}\n");
    assert_eq!(text(Format::Yaml), "text: text\nnumber: 1\n");
    assert_eq!(
        text(Format::Xml),
        "<dialback.kinds.v1.Kinds.Nested>\n  <text>text</text>\n  <number>1</number>\n</dialback.kinds.v1.Kinds.Nested>\n"
    );
    assert_eq!(text(Format::Text), "text: \"text\"\nnumber: 1\n");
}

fn set_all(assignments: &[&str]) -> Result<String, String> {
    let mut message = prost_reflect::DynamicMessage::new(kinds());
    for assignment in assignments {
        set(&mut message, assignment).map_err(|error| error.to_string())?;
    }
    Ok(json(&message))
}

#[test]
fn fields_are_set_by_their_paths() {
    for (assignments, expected) in [
        (&["f_string=a=b", "fInt32=-5"][..], r#"{"fInt32":-5,"fString":"a=b"}"#),
        (&["f_string=", "o_string="], r#"{"oString":""}"#),
        (&["f_nested.text=x", "f_nested.number=2"], r#"{"fNested":{"text":"x","number":2}}"#),
        (&["r_string=a", "r_string[]=b", "r_string[0]=c"], r#"{"rString":["c","b"]}"#),
        (
            &["r_nested[0].text=a", "r_nested[0].number=1", "r_nested[].text=b"],
            r#"{"rNested":[{"text":"a","number":1},{"text":"b"}]}"#,
        ),
        (&["m_int32[-1]=x", "m_text[a.b=c]=d"], r#"{"mInt32":{"-1":"x"},"mText":{"a.b=c":"d"}}"#),
        (&["m_fixed64[7].text=x", "m_fixed64[7].number=1"], r#"{"mFixed64":{"7":{"text":"x","number":1}}}"#),
        (&["f_color=RED", "r_color=no", "r_color=2"], r#"{"fColor":"RED","rColor":["no","GREEN"]}"#),
        (
            &["f_bytes=AP8", "f_bool=true", "f_double=NaN", "f_float=0.1"],
            r#"{"fDouble":"NaN","fFloat":0.1,"fBool":true,"fBytes":"AP8="}"#,
        ),
        (&["w_timestamp=2006-01-02T15:04:05+01:00"], r#"{"wTimestamp":"2006-01-02T14:04:05Z"}"#),
        (&["w_duration=1.5s", "w_field_mask=a,bC"], r#"{"wDuration":"1.500s","wFieldMask":{"paths":["a","b_c"]}}"#),
        (&["w_string=\"x\"", "w_int64=5", "w_bool=false"], r#"{"wInt64":"5","wBool":false,"wString":"\"x\""}"#),
        (&["w_value=5"], r#"{"wValue":5}"#),
        (&["w_value=five"], r#"{"wValue":"five"}"#),
        (&["w_struct={\"a\": [1]}", "f_nested={\"text\": \"x\"}"], r#"{"fNested":{"text":"x"},"wStruct":{"a":[1]}}"#),
        (&["c_int32=1", "c_string=x"], r#"{"cString":"x"}"#),
    ] {
        assert_eq!(set_all(assignments).as_deref(), Ok(expected), "{assignments:?}");
    }
}

#[test]
fn bytes_come_from_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0, 255]).unwrap();
    let assignment = format!("f_bytes=@{}", file.path().display());
    assert_eq!(set_all(&[&assignment]).as_deref(), Ok(r#"{"fBytes":"AP8="}"#));
    assert!(set_all(&["f_bytes=@/nowhere/at/all"]).unwrap_err().contains("/nowhere/at/all"));
    // A string may begin with it.
    assert_eq!(set_all(&["f_string=@ann"]).as_deref(), Ok(r#"{"fString":"@ann"}"#));
}

#[test]
fn what_cannot_be_set_says_why() {
    for (assignment, expected) in [
        ("f_string", "\"f_string\": expected FIELD=VALUE"),
        ("=x", "\"=x\": expected the name of a field"),
        ("m_text[a=x", "\"m_text[a=x\": expected FIELD=VALUE"),
        (
            "f_strnig=x",
            "f_strnig: dialback.kinds.v1.Kinds has no field with this name, did you mean fString, cString or mString?",
        ),
        (
            "f_nested.txt=x",
            "f_nested.txt: dialback.kinds.v1.Kinds.Nested has no field with this name, did you mean text?",
        ),
        ("f_int32=x", "f_int32: expected an integer from -2147483648 to 2147483647, found \"x\""),
        ("f_string.x=y", "f_string.x: expected a message before the dot, found a string"),
        (
            "f_string[0]=y",
            "f_string[0]: expected a field that is repeated or a map before the brackets, found a string",
        ),
        ("m_text=y", "m_text: expected the key of a map in brackets, found none"),
        ("r_string[1]=y", "r_string[1]: expected an index from 0 to 0, found 1"),
        ("r_string[x]=y", "r_string[x]: expected an index, found \"x\""),
        ("f_color=BLUE", "f_color: the enum dialback.kinds.v1.Color has no value \"BLUE\""),
        ("f_color=GREN", "f_color: the enum dialback.kinds.v1.Color has no value \"GREN\", did you mean GREEN?"),
        (
            "f_nested={\"txt\": 1}",
            "f_nested: txt: dialback.kinds.v1.Kinds.Nested has no field with this name, did you mean text?",
        ),
        ("w_timestamp=today", "w_timestamp: expected a time such as 2006-01-02T15:04:05.000Z, found \"today\""),
    ] {
        let error = set_all(&[assignment]).unwrap_err();
        assert_eq!(error, expected, "{assignment}");
    }
    assert!(set_all(&["f_nested=x"]).unwrap_err().starts_with("f_nested: expected a message "));
}
