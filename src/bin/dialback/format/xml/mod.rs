//! Messages as XML.
//!
//! ```xml
//! <shop.Order>                                      the root is named after the message type
//!   <id>18446744073709551615</id>                   a field by its name in the .proto file
//!   <state>PAID</state>                             an enum value by its name
//!   <photo>iVBORw0KGgo=</photo>                     bytes in base64
//!   <ratio>NaN</ratio>                              NaN, Infinity, -Infinity
//!   <note/>                                         a string that is empty, or a message that is
//!   <item><name>pen</name></item>                   a repeated field: the element again for each value
//!   <item><name>ink</name></item>
//!   <stock key="pen">3</stock>                      a map: an element for each entry
//!   <created>2006-01-02T15:04:05Z</created>         Timestamp, Duration, FieldMask and wrappers: their text in JSON
//!   <extra>{"color":["red",null]}</extra>           Struct, Value and ListValue: their JSON
//!   <detail type="type.googleapis.com/shop.Gift">   an Any: the type, and the fields of it
//!     <wish>soon</wish>
//!   </detail>
//! </shop.Order>
//! ```
//!
//! - What is absent has no element. Of a oneof one member may be there.
//! - White space counts in strings, and nowhere else. A string with characters that XML cannot hold is in base64, and
//!   the attribute `encoding="base64"` says so; for the key of a map, `key-encoding="base64"`.
//! - An `Any` whose type is not known has the attribute `value` with the bytes in base64. One that holds an `Any` has
//!   it in the element `value`.
//! - An extension is `<extension name="package.name">`.
//! - Read are also the fields' names in JSON, the numbers of enum values, CDATA and comments; not document types, and
//!   no entities but `&lt; &gt; &amp; &quot; &apos;` and those of characters.

mod parse;
mod read;
mod write;

use prost_reflect::{DynamicMessage, MessageDescriptor};

pub(super) use self::parse::Elements;
pub(super) use self::write::write;
use super::error::{FormatError, Place};

/// Reads a message from its root element.
pub(super) fn parse(text: &str, place: Place, descriptor: &MessageDescriptor) -> Result<DynamicMessage, FormatError> {
    let at =
        |offset: u64| place.after(&text.as_bytes()[..usize::try_from(offset).unwrap_or(usize::MAX).min(text.len())]);
    let root = parse::parse(text).map_err(|(offset, what)| FormatError::Syntax { place: at(offset as u64), what })?;
    read::root(&root, descriptor).map_err(|fault| {
        let place = at(fault.at);
        fault.into_error(Some(place))
    })
}

/// Whether XML 1.0 can hold the text, section 2.2.
fn is_xml(text: &str) -> bool {
    text.chars().all(|c| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..))
}
