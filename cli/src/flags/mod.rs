//! Global flags: the table, how a command line is read, and the settings that follow from it.
pub mod normalize;
pub mod settings;
pub mod table;

pub use settings::Settings;
