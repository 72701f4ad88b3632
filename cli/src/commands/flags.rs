//! `runsc flags`: the table of global flags, with what each does and what is in force.

use std::fmt::Write;

use anyhow::Result;

use crate::flags::{
    Settings,
    table::{Effect, GLOBAL, Kind},
};

pub fn run(settings: &Settings) -> Result<i32> {
    let mut out = String::new();
    for flag in GLOBAL {
        let kind = match flag.kind {
            Kind::Bool => "bool".to_owned(),
            Kind::Int => "int".to_owned(),
            Kind::Text => "string".to_owned(),
            Kind::Choice(words) => words.join("|"),
        };
        let effect = match flag.effect {
            Effect::Applied => "applied".to_owned(),
            Effect::Ignored(why) => format!("ignored with a warning: {why}"),
            Effect::Refused(why) => format!("refused: {why}"),
            Effect::Internal => "for internal commands".to_owned(),
        };
        writeln!(out, "  -{} {kind}\n    \t{} (default {:?}) [{effect}]", flag.name, flag.help, flag.default)?;
        if let Some((_, value)) = settings.given.iter().find(|(name, _)| *name == flag.name) {
            writeln!(out, "    \tset to {value:?}")?;
        }
    }
    super::print(&out)
}
