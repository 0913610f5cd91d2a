//! How values of other crates stand in an event: by a number.

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

/// How the host maps a page: whether by a PMD entry.
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
pub(super) mod label {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::choice::{Combination, Listener, word};
    use crate::record::RowLabel;
    use program::output::visible;

    #[derive(Serialize)]
    struct Written<'a> {
        case: &'a str,
        tried: Combination,
        #[serde(with = "word")]
        listener: Listener,
    }

    #[derive(Deserialize)]
    struct Read {
        #[serde(deserialize_with = "visible::read_line")]
        case: String,
        tried: Combination,
        #[serde(with = "word")]
        listener: Listener,
    }

    pub(in crate::events) fn serialize<S: Serializer>(label: &RowLabel, to: S) -> Result<S::Ok, S::Error> {
        let RowLabel { case, tried, listener } = label;
        Written { case, tried: *tried, listener: *listener }.serialize(to)
    }

    pub(in crate::events) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<RowLabel, D::Error> {
        let Read { case, tried, listener } = Read::deserialize(from)?;
        Ok(RowLabel { case, tried, listener })
    }
}
