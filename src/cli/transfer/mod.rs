//! All adapters of a tenant as a folder, and back into a server: through the API alone, so any two servers will do.
//!
//! ```text
//! manifest.json                 what there is, written last
//! adapters/NAME/vN/             a PEFT folder
//! ```
//!
//! A file is written beside its place and moved there when it is complete and what it should be, so an export that was
//! broken off goes on when it is repeated. So does an import: what the server has already is not sent again.

mod export;
mod import;
mod manifest;

pub(super) use self::{
    export::{Extent, export, get},
    import::import,
};
