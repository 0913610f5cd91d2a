//! The layout of a tracepoint's record on the running kernel: `events/GROUP/NAME/format` of tracefs.
//!
//! ```text
//!   name: kvm_unmap_hva_range
//!   ID: 27
//!   format:
//!    field:unsigned short common_type; offset:0; size:2; signed:0;
//!    field:unsigned long start; offset:8; size:8; signed:0;
//!                       │                 └─ a Field: offset, width, whether signed
//!                       └─ the name of the field
//! ```
//!
//! No layout is assumed: an event without a needed field, or with one of a size that cannot be read, is refused, and the
//! error names both.

/// The limit on a format's text. The kernel's longest has some 20 KiB.
const LONGEST: usize = 1 << 18;
/// The limit on fields. The kernel's own limit is lower.
const MOST_FIELDS: usize = 256;

/// A format that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum FormatError {
    #[error("a format of {0} bytes: tracefs has none that long; is this a format file?")]
    TooLong(usize),
    #[error("a format without a line `{0}`: is this a format file of tracefs?")]
    Missing(&'static str),
    #[error("line {line} of a format makes no sense: `{text}`")]
    Line { line: usize, text: String },
    #[error("the event {event} has no field `{field}` on this kernel")]
    NoField { event: String, field: String },
    #[error(
        "the field `{field}` of the event {event} has {size} bytes on this kernel, and {wanted} can be read"
    )]
    Size { event: String, field: String, size: usize, wanted: &'static str },
}

/// How a record of one tracepoint is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    name: String,
    id: u16,
    fields: Vec<Named>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    name: String,
    offset: u16,
    size: u16,
    signed: bool,
}

/// One integer in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    offset: u16,
    /// 1, 2, 4 or 8.
    size: u8,
    signed: bool,
}

impl Field {
    /// The field's value in a record; `None` if the record ends before it. A signed one is extended.
    #[inline]
    pub fn read(self, record: &[u8]) -> Option<u64> {
        let bytes = record.get(usize::from(self.offset)..)?.get(..usize::from(self.size))?;
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let value = u64::from_le_bytes(word);
        let unused = 64 - 8 * u32::from(self.size);
        Some(if self.signed { ((value << unused) as i64 >> unused) as u64 } else { value })
    }
}

impl Format {
    /// Reads a `format` file.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        if text.len() > LONGEST {
            return Err(FormatError::TooLong(text.len()));
        }
        let (mut name, mut id, mut fields) = (None, None, Vec::new());
        for (line, text) in (1..).zip(text.lines()) {
            let wrong = || FormatError::Line { line, text: text.chars().take(60).collect() };
            if let Some(given) = text.strip_prefix("name:") {
                name = Some(given.trim().to_owned());
            } else if let Some(given) = text.strip_prefix("ID:") {
                id = Some(given.trim().parse().map_err(|_| wrong())?);
            } else if let Some(given) = text.trim_start().strip_prefix("field:") {
                if fields.len() == MOST_FIELDS {
                    return Err(wrong());
                }
                fields.push(Named::parse(given).ok_or_else(wrong)?);
            } else if text.starts_with("print fmt:") {
                // The rest is the C expression that prints a record.
                break;
            }
        }
        let name = name.ok_or(FormatError::Missing("name:"))?;
        Ok(Self { name, id: id.ok_or(FormatError::Missing("ID:"))?, fields })
    }

    /// The tracepoint's number, with which its records begin.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// The integer field `name`.
    pub fn field(&self, name: &str) -> Result<Field, FormatError> {
        let field = self.find(name)?;
        match field.size {
            1 | 2 | 4 | 8 => Ok(Field { offset: field.offset, size: field.size as u8, signed: field.signed }),
            size => Err(self.wrong_size(name, size, "1, 2, 4 or 8")),
        }
    }

    /// The field `name`, which must be a word of 64 bits.
    pub fn word(&self, name: &str) -> Result<Field, FormatError> {
        let field = self.find(name)?;
        match field.size {
            8 => Ok(Field { offset: field.offset, size: 8, signed: false }),
            size => Err(self.wrong_size(name, size, "8")),
        }
    }

    /// The names of its fields in order of offset, without those that all tracepoints have.
    pub fn own_fields(&self) -> Vec<&str> {
        let mut own: Vec<&Named> =
            self.fields.iter().filter(|field| !field.name.starts_with("common_")).collect();
        own.sort_by_key(|field| field.offset);
        own.into_iter().map(|field| field.name.as_str()).collect()
    }

    fn find(&self, name: &str) -> Result<&Named, FormatError> {
        let known = self.fields.iter().find(|field| field.name == name);
        known.ok_or_else(|| FormatError::NoField { event: self.name.clone(), field: name.to_owned() })
    }

    fn wrong_size(&self, field: &str, size: u16, wanted: &'static str) -> FormatError {
        FormatError::Size { event: self.name.clone(), field: field.to_owned(), size: size.into(), wanted }
    }
}

impl Named {
    /// `unsigned long start; offset:8; size:8; signed:0;`
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let declared = parts.next()?;
        let mut number = |key: &str| parts.next()?.strip_prefix(key)?.parse::<u16>().ok();
        let (offset, size) = (number("offset:")?, number("size:")?);
        let signed = number("signed:")? != 0;
        // `char comm[16]` is called `comm`.
        let last = declared.split_whitespace().next_back()?;
        let name = last.split('[').next()?.trim_start_matches('*').to_owned();
        (!name.is_empty() && offset.checked_add(size).is_some()).then_some(Self {
            name,
            offset,
            size,
            signed,
        })
    }
}

#[cfg(test)]
mod tests;
