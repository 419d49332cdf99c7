//! Fields that the schema does not have, taken out of a JSON or YAML document before it is read.

use prost_reflect::{Kind, MessageDescriptor};

use super::any;
use super::slot::Slot;
use super::tree::{Data, Node};
use super::well_known::{WellKnown, well_known};

/// Takes out of a message, and of all that are in it, what has no field. What is wrong otherwise is left for the reader.
pub(super) fn prune(node: &mut Node, descriptor: &MessageDescriptor) {
    let Data::Map(entries) = &mut node.data else { return };
    let inside_any = match well_known(descriptor) {
        None | Some(WellKnown::Empty) => None,
        Some(WellKnown::Any) => {
            let url = entries.iter().find_map(|(key, node)| match &node.data {
                Data::String(url) if key.name == "@type" => Some(url.clone()),
                _ => None,
            });
            let Some(payload) = url.and_then(|url| any::resolve(descriptor, &url).ok()) else { return };
            if any::has_value(&payload) {
                let value = entries.iter_mut().find(|(key, _)| key.name == "value");
                return value.into_iter().for_each(|(_, node)| prune(node, &payload));
            }
            Some(payload)
        }
        // Their JSON has no fields.
        Some(_) => return,
    };
    let fields = inside_any.as_ref().unwrap_or(descriptor);
    let is_type = |name: &str| inside_any.is_some() && name == "@type";
    entries.retain(|(key, _)| is_type(&key.name) || Slot::find(fields, &key.name).is_ok());
    for (key, value) in entries {
        let Ok(slot) = Slot::find(fields, &key.name) else { continue };
        let kind = slot.map().map_or_else(|| slot.kind(), |(_, value)| value);
        let Kind::Message(message) = kind else { continue };
        match &mut value.data {
            Data::Map(values) if slot.map().is_some() => {
                values.iter_mut().for_each(|(_, value)| prune(value, &message))
            }
            Data::List(values) if slot.is_list() => values.iter_mut().for_each(|value| prune(value, &message)),
            _ => prune(value, &message),
        }
    }
}
