//! The form in an event of values that have another form elsewhere.

use serde::{Deserialize, Serialize};

use crate::choice::{Combination, Listener, RowLabel, word};
use program::output::visible;

/// A folio's order.
pub(super) mod order {
    use guest_mem::Order;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(in crate::events) fn serialize<S: Serializer>(order: &Order, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(order.get())
    }

    pub(in crate::events) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Order, D::Error> {
        Order::new(u8::deserialize(from)?).ok_or_else(|| D::Error::custom("an order that no folio has"))
    }
}

/// The level of a host mapping: whether it is a PMD entry.
pub(super) mod level {
    use guest_mem::MapLevel;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::events) fn serialize<S: Serializer>(level: &MapLevel, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bool(*level == MapLevel::Pmd)
    }

    pub(in crate::events) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MapLevel, D::Error> {
        bool::deserialize(from).map(|by_pmd| if by_pmd { MapLevel::Pmd } else { MapLevel::Pte })
    }
}

/// A row's label. In JSON its combination's keys stand beside the others, and here one after another.
#[derive(Serialize, Deserialize)]
#[serde(remote = "RowLabel")]
pub(super) struct Label {
    #[serde(deserialize_with = "visible::read_line")]
    case: String,
    tried: Combination,
    #[serde(with = "word")]
    listener: Listener,
}
