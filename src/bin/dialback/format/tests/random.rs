//! Random messages of any type. Proptest gives the bytes that decide, so that it can make a failing message smaller.

use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage, Value};

use crate::format::slot::Slot;
use crate::format::well_known::{self, WellKnown, set};

/// Strings that one format or another could take for something else.
const STRINGS: &[&str] = &[
    "",
    "ann",
    "no",
    "yes",
    "on",
    "off",
    "y",
    "n",
    "NO",
    "null",
    "~",
    "Null",
    "true",
    "false",
    "1e3",
    "0x1",
    "0o7",
    "010",
    "1_000",
    "1.10",
    "-1",
    "+1",
    ".5",
    ".nan",
    ".inf",
    "-.inf",
    "NaN",
    "Infinity",
    "2001-01-01",
    "12:30:45",
    "=",
    "<<",
    "-",
    "- a",
    "--",
    "---",
    "...",
    "--- a",
    "---\nfoo",
    "a\n---\nb",
    "a\n...\n",
    "? x",
    ": x",
    "a: b",
    "a:",
    "#c",
    "a #c",
    " x ",
    "x ",
    " x",
    "  x\n y",
    "\n",
    "\n\n",
    "a\n",
    "a\nb",
    "a\n\nb\n\n",
    "\r",
    "\r\n",
    "a\rb",
    "\t",
    "\tx",
    "x\t",
    "\0",
    "\u{1}",
    "\u{1b}[0m",
    "\u{1e}",
    "\u{7f}",
    "\u{80}",
    "\u{85}",
    "\u{a0}",
    "\u{2028}",
    "\u{2029}",
    "\u{feff}",
    "\u{feff}x",
    "\u{fffd}",
    "\u{fffe}",
    "\u{ffff}",
    "\u{1f600}",
    "\u{10ffff}",
    "e\u{301}",
    "<a>&amp;</a>",
    "]]>",
    "<![CDATA[",
    "<!--",
    "&#13;",
    "\"",
    "'",
    "''",
    "\\",
    "\\n",
    "\\u0000",
    "!tag",
    "!!str x",
    "&a",
    "*a",
    "|",
    ">",
    "|-",
    "@x",
    "`x",
    "%x",
    "{}",
    "{",
    "}",
    "[]",
    "[",
    "]",
    ",",
    "a, b",
    "\"a\": b",
    "'a",
    "$x",
    "${x}",
    "@type",
    "value",
    "a long text with many words that goes beyond the eighty columns at which a writer may want to begin a new line",
    "a long text with many words that goes beyond the eighty columns\nat which a writer may want to begin a new line \n",
    "  a long text with many words that begins with spaces and goes beyond the eighty columns of a line in most editors",
    "aVeryLongWordWithoutAnySpacesInItThatGoesBeyondTheEightyColumnsAtWhichAWriterMayWantToBeginANewLineButCannot",
];

const FLOATS: &[f64] = &[
    0.0,
    1.0,
    -1.0,
    0.1,
    -0.1,
    1.5,
    1e6,
    1e7,
    123_456_789.0,
    1e20,
    1e21,
    1e22,
    1e-4,
    1e-5,
    1e-6,
    1e-7,
    1e300,
    -1e300,
    16_777_217.0,
    9_007_199_254_740_993.0,
    5e-324,
    f64::MAX,
    f64::MIN_POSITIVE,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    0.333_333_333_333_333_3,
    3.402_823_466_385_288_6e38,
    1e-45,
];

/// Where decisions come from. When the bytes are used up every answer is 0.
pub(super) struct Source<'a> {
    bytes: &'a [u8],
}

impl<'a> Source<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        (usize::from(self.byte()) << 8 | usize::from(self.byte())) % limit
    }

    fn word(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => i64::MAX as u64,
            4 => i64::MIN as u64,
            5 => i32::MAX as u64,
            6 => i32::MIN as u64,
            _ => (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte())),
        }
    }

    fn float(&mut self) -> f64 {
        match self.below(FLOATS.len() + 10) {
            listed if listed < FLOATS.len() => FLOATS[listed],
            // Not a number is not a number, whichever it is, and prost-reflect takes minus zero for the default.
            _ => Some(f64::from_bits(self.word()) + 0.0).filter(|value| !value.is_nan()).unwrap_or(f64::NAN),
        }
    }

    fn finite(&mut self) -> f64 {
        Some(self.float()).filter(|value| value.is_finite()).unwrap_or(0.5)
    }

    fn string(&mut self) -> String {
        match self.below(STRINGS.len() + 40) {
            listed if listed < STRINGS.len() => STRINGS[listed].to_owned(),
            _ => {
                let length = self.below(12);
                (0..length).map(|_| self.letter()).collect()
            }
        }
    }

    fn letter(&mut self) -> char {
        let code = match self.below(4) {
            0 => self.below(0x20),
            1 => 0x20 + self.below(0x60),
            2 => self.below(0x1_0000),
            _ => 0x1_0000 + 0x100 * self.below(0xF00) + self.below(0x100),
        };
        char::from_u32(code as u32).unwrap_or('x')
    }

    fn blob(&mut self) -> Vec<u8> {
        let length = self.below(20);
        (0..length).map(|_| self.byte()).collect()
    }

    fn scalar(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Double => Value::F64(self.float()),
            Kind::Float => match self.float() as f32 {
                value if value.is_nan() => Value::F32(f32::NAN),
                value => Value::F32(value + 0.0),
            },
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.word() as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.word() as i64),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.word() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.word()),
            Kind::Bool => Value::Bool(self.below(2) == 1),
            Kind::String => Value::String(self.string()),
            Kind::Bytes => Value::Bytes(self.blob().into()),
            Kind::Enum(descriptor) if descriptor.full_name() == "google.protobuf.NullValue" => Value::EnumNumber(0),
            Kind::Enum(descriptor) => match self.below(descriptor.values().len() + 1) {
                listed if listed < descriptor.values().len() => {
                    Value::EnumNumber(descriptor.values().nth(listed).unwrap().number())
                }
                // A number that this version of the enum does not know.
                _ => Value::EnumNumber(self.word() as i32),
            },
            Kind::Message(_) => unreachable!("no scalar"),
        }
    }

    fn value(&mut self, kind: &Kind, depth: usize) -> Value {
        match kind {
            Kind::Message(descriptor) => Value::Message(self.message(descriptor, depth)),
            _ => self.scalar(kind),
        }
    }

    fn field(&mut self, slot: &Slot, depth: usize) -> Value {
        let kind = slot.kind();
        if let Some((key, value)) = slot.map() {
            let length = self.below(4);
            let entries = (0..length).map(|_| {
                let key = self.scalar(&key).into_map_key().unwrap();
                (key, self.value(&value, depth + 1))
            });
            return Value::Map(entries.collect());
        }
        if slot.is_list() {
            let length = self.below(4);
            return Value::List((0..length).map(|_| self.value(&kind, depth + 1)).collect());
        }
        self.value(&kind, depth + 1)
    }

    pub(super) fn message(&mut self, descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        match well_known::well_known(descriptor) {
            Some(WellKnown::Timestamp) => {
                let seconds = match self.below(6) {
                    0 => self.word() as i64,
                    1 => -62_135_596_800,
                    2 => 253_402_300_799,
                    _ => self.word() as i64 % 62_135_596_800,
                };
                self.time(&mut message, seconds);
            }
            Some(WellKnown::Duration) => {
                let seconds = self.word() as i64 % 315_576_000_001;
                self.time(&mut message, seconds);
            }
            Some(WellKnown::FieldMask) => {
                let paths = ["name", "user.name", "created_at", "a.b_c.d", "foo_3", "Foo", "", "a,b", "a__b", "_a"];
                let length = self.below(4);
                let paths = (0..length).map(|_| Value::String(paths[self.below(paths.len())].into()));
                set(&mut message, 1, Value::List(paths.collect()));
            }
            Some(WellKnown::Value) => self.json_value(&mut message, depth),
            Some(WellKnown::Any) => self.any(&mut message, depth),
            _ => {
                let extensions = descriptor.extensions().map(Slot::Extension);
                let slots: Vec<_> = descriptor.fields().map(Slot::Field).chain(extensions).collect();
                let count = if slots.is_empty() || depth > 6 { 0 } else { self.below(8) };
                for _ in 0..count {
                    let slot = &slots[self.below(slots.len())];
                    let value = self.field(slot, depth);
                    // Another member of the oneof may be set.
                    let _ = slot.set(&mut message, value);
                }
            }
        }
        message
    }

    fn time(&mut self, message: &mut DynamicMessage, seconds: i64) {
        let nanos = [0, 1, 500_000_000, 999_999_999, 1_000, -1, -500_000_000, 2_000_000_000];
        set(message, 1, Value::I64(seconds));
        set(message, 2, Value::I32(nanos[self.below(nanos.len())]));
    }

    fn json_value(&mut self, message: &mut DynamicMessage, depth: usize) {
        match self.below(if depth > 6 { 4 } else { 6 }) {
            0 => set(message, 1, Value::EnumNumber(0)),
            1 => set(message, 2, Value::F64(self.finite())),
            2 => set(message, 3, Value::String(self.string())),
            3 => set(message, 4, Value::Bool(self.below(2) == 1)),
            number => {
                let number = number as u32 + 1;
                let kind = message.descriptor().get_field(number).unwrap().kind();
                let value = self.value(&kind, depth + 1);
                set(message, number, value);
            }
        }
    }

    fn any(&mut self, message: &mut DynamicMessage, depth: usize) {
        let names = [
            "dialback.kinds.v1.Kinds",
            "dialback.kinds.v1.Kinds.Nested",
            "google.protobuf.Duration",
            "google.protobuf.Any",
            "google.protobuf.Struct",
            "google.protobuf.Value",
            "google.protobuf.StringValue",
            "google.protobuf.Empty",
            "dialback.kinds.legacy.Legacy",
            "unknown.Type",
            "",
        ];
        let name = names[if depth > 6 { 2 } else { self.below(names.len()) }];
        let bytes = match message.descriptor().parent_pool().get_message_by_name(name) {
            Some(payload) => self.message(&payload, depth + 1).encode_to_vec(),
            None => self.blob(),
        };
        if !name.is_empty() {
            set(message, 1, Value::String(format!("type.googleapis.com/{name}")));
        }
        set(message, 2, Value::Bytes(bytes.into()));
    }
}
