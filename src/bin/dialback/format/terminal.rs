//! Characters that a terminal obeys, written so that the same format reads them back.

use super::Format;

/// Whether a terminal shows a character, or is moved by it in the way that text is. Those that turn the direction of
/// writing are no control characters, and make a text look like another (https://trojansource.codes).
pub(crate) fn is_safe(c: char) -> bool {
    match c {
        '\n' | '\t' => true,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        _ => !c.is_control(),
    }
}

/// A message as it was written, with escapes for what a terminal would obey. In JSON, XML and text format such characters
/// are in strings alone; whoever writes YAML sees to that.
pub(crate) fn escape(text: &str, format: Format) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match format {
            _ if is_safe(c) => escaped.push(c),
            Format::Json | Format::Ndjson | Format::Yaml => escaped.push_str(&format!("\\u{:04x}", c as u32)),
            Format::Xml => escaped.push_str(&format!("&#x{:x};", c as u32)),
            // It separates messages, and a terminal passes over it.
            Format::Text if c == '\u{1e}' => escaped.push(c),
            Format::Text => {
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| escaped.push_str(&format!("\\{byte:03o}")))
            }
            Format::Binary => escaped.push(c),
        }
    }
    escaped
}
